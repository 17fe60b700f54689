"""Run the Dockerfile without docker: each instruction runs as root, by chroot, in a folder with Debian and Python.

    python tests/helpers/docker_replay.py BASE WORK [--build-arg TORCH=cuda] [--share /opt/wheels] [--env PIP_CERT]

BASE is a folder with the image that the FROM lines name: Debian 12, with Python 3.11 in BASE/usr/local. Each stage of
the Dockerfile starts as a copy of BASE. Make BASE by

    debootstrap --variant=minbase \\
        --include=ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,libreadline8 bookworm BASE
    cd PREFIX                  # of a Python 3.11 that was built on Debian 12, as by pyenv; BASE is an absolute path
    tar c --exclude='site-packages/*' bin/python3* lib/libpython3* lib/python3.11 | tar x -C BASE/usr/local
    chroot BASE ldconfig

--share and --env pass files and environment variables of this machine to the instructions, because pip needs them; the
image does not contain them. At the end, the container's command and its healthcheck run as the container's user. Then
a user id without a name, as with `docker run --user`, segments an image of /data.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

NAMELESS = 4242
"""The id of a user without a line in /etc/passwd."""
KNOWN = {"ARG", "FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (name, arguments) of each instruction, with continued lines joined and comments left out.

    Raises:
        ValueError: an instruction that this replay does not know.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]
    for name, _ in found:
        if name not in KNOWN:
            raise ValueError(f"{name} is not known to this replay: {', '.join(sorted(KNOWN))}")
    return found


def _pattern(rule: str) -> re.Pattern:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", rule.strip("/"))
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(signs.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def context(root: Path) -> list[str]:
    """Return the files that .dockerignore keeps; the last rule that matches a path, or a folder above it, decides."""
    rules = [line.strip() for line in (root / ".dockerignore").read_text().splitlines()]
    rules = [(not rule.startswith("!"), _pattern(rule.lstrip("!"))) for rule in rules if rule and rule[0] != "#"]
    left = []
    for path in sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()):
        out = [ignored for ignored, pattern in rules if pattern.fullmatch(path)]
        if not (out and out[-1]):
            left.append(path)
    return left


@dataclass
class Stage:
    """The root folder of one build stage, and the user, variables and other settings that its instructions have set."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


class Replay:
    """Replays a Dockerfile.

    Args:
        root: the folder of the Dockerfile.
        base: a root file system, copied for each FROM.
        work: a folder for the stages.
        arguments: values of ARG.
        share: files and folders of this machine that the instructions see at the same path.
        passed: names of environment variables of this machine that the instructions see.
    """

    def __init__(self, root: Path, base: Path, work: Path, arguments: dict[str, str], share=(), passed=()) -> None:
        self.root, self.base, self.work, self.arguments, self.share = root, base, work, arguments, share
        self.outside = {name: os.environ[name] for name in passed if name in os.environ}
        self.stages: dict[str, Stage] = {}
        self.stage: Stage | None = None

    def build(self) -> Stage:
        """Run all instructions; return the last stage."""
        for name, rest in instructions((self.root / "Dockerfile").read_text()):
            print(f"[{time.strftime('%H:%M:%S')}] {name} {rest}", flush=True)
            getattr(self, f"_{name.lower()}")(rest)
        return self.stage

    def _from(self, rest: str) -> None:
        name = rest.split(" AS ")[1] if " AS " in rest else "last"
        self.stage = self.stages[name] = Stage(self.work / name)
        subprocess.run(["cp", "-a", self.base, self.stage.folder], check=True)

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        value = self.arguments.get(name, default)
        if self.stage:
            self.stage.variables[name] = value

    def _env(self, rest: str) -> None:
        path = self.stage.variables.get("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        for word in shlex.split(rest):
            name, value = word.split("=", 1)
            self.stage.variables[name] = value.replace("$PATH", path)

    def _copy(self, rest: str) -> None:
        *options, source, target = rest.split()
        to = self.stage.folder / target.strip("/")
        if options:
            subprocess.run(
                ["cp", "-a", self.stages[options[0].split("=")[1]].folder / source.strip("/"), to], check=True
            )
            return
        for path in context(self.root):
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / path, to / path)

    def _run(self, rest: str) -> None:
        done = self.inside(["sh", "-c", rest])
        if done.wait():
            raise SystemExit(f"error: exit code {done.returncode} of RUN {rest}")

    def _user(self, rest: str) -> None:
        self.stage.user = rest

    def _workdir(self, rest: str) -> None:
        self.stage.workdir = rest

    def _expose(self, rest: str) -> None: ...

    def _entrypoint(self, rest: str) -> None:
        self.stage.entrypoint = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.stage.command = json.loads(rest)

    def _healthcheck(self, rest: str) -> None:
        self.stage.healthcheck = json.loads(rest.partition("CMD")[2])

    def inside(self, words: list[str], **options) -> subprocess.Popen:
        """Start a command in the current stage, as the stage's user, with its variables, /proc and its own mounts."""
        stage, mounts = self.stage, ["mount -t proc proc proc", "mount --rbind /dev dev"]
        for path in ("/etc/resolv.conf", "/etc/hosts", *map(str, self.share)):
            inside = stage.folder / path.strip("/")
            (inside if Path(path).is_dir() else inside.parent).mkdir(parents=True, exist_ok=True)
            if not Path(path).is_dir():
                inside.touch()
            mounts.append(f"mount --bind {shlex.quote(path)} .{shlex.quote(path)}")
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
            **self.outside,
            **stage.variables,
        }
        who = [] if stage.user == "root" else ["setpriv", *_ids(stage), "--clear-groups"]
        call = shlex.join(["chroot", ".", "env", "-i", *(f"{k}={v}" for k, v in variables.items()), *who])
        enter = f'{call} sh -c \'cd "$0" && exec "$@"\' {shlex.quote(stage.workdir)} {shlex.join(words)}'
        script = f"set -e; {'; '.join(mounts)}; exec {enter}"
        return subprocess.Popen(["unshare", "--mount", "sh", "-c", script], cwd=stage.folder, **options)


def _ids(stage: Stage) -> list[str]:
    if stage.user.isdigit():
        return [f"--reuid={stage.user}", "--regid=0"]  # as docker run --user does for an id without a name
    lines = (stage.folder / "etc/passwd").read_text().splitlines()
    _, _, user, group, *_ = next(line.split(":") for line in lines if line.startswith(f"{stage.user}:"))
    return [f"--reuid={user}", f"--regid={group}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("work", type=Path, help="a new folder; the image is in WORK/last")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--share", nargs="*", default=[], help="files and folders of this machine that the steps see")
    parser.add_argument("--env", nargs="*", default=[], help="environment variables of this machine for the steps")
    args = parser.parse_args()
    args.work.mkdir()
    given = dict(pair.split("=", 1) for pair in args.build_arg)
    replay = Replay(Path(__file__).parents[2], args.base, args.work.resolve(), given, args.share, args.env)
    stage = replay.build()
    replay.outside, replay.share = {}, []  # the running container does not see the shared files
    page = replay.inside([*stage.entrypoint, *stage.command])
    try:
        for _ in range(60):
            time.sleep(2)
            if page.poll() is not None:
                raise SystemExit(f"error: the container's command ended with {page.returncode}")
            if replay.inside(stage.healthcheck, stderr=subprocess.DEVNULL).wait() == 0:
                print("healthy")
                break
        else:
            raise SystemExit("error: the healthcheck has not passed within two minutes")
    finally:
        page.terminate()
        print("the container's command ended with", page.wait(60))
    _segment(replay)


def _segment(replay: Replay) -> None:
    """Segment an image in /data as a user without a name.

    Raises:
        SystemExit: it failed, or wrote no result.
    """
    stage, name = replay.stage, "fields_30m.jpg"
    data = stage.folder / "data"
    shutil.copy2(replay.root / "demo" / name, data)
    os.chown(data, NAMELESS, NAMELESS)
    stage.user = str(NAMELESS)
    code = replay.inside([*stage.entrypoint, "segment", name, "--classes", "land,water"]).wait()
    written = sorted(path.name for path in data.glob("output/*"))
    if code or "fields_30m_labels.png" not in written:
        raise SystemExit(f"error: exit code {code} of segment as user {NAMELESS}, which wrote {written}")
    print("segmented as user", NAMELESS)


if __name__ == "__main__":
    sys.exit(main())
