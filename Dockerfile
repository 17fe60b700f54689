# A container with the web page and the command line.
#
#   docker build -t skysense-o .                                    torch for CPUs, from PyTorch's own index
#   docker build -t skysense-o:cuda --build-arg TORCH=cuda .        torch with CUDA 13, from PyPI
#   docker run --rm -p 127.0.0.1:7860:7860 skysense-o               the page, at http://127.0.0.1:7860
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 skysense-o:cuda
#   docker run --rm -v "$PWD:/data" --user "$(id -u)" skysense-o segment town.jpg --classes "road,tree"
#
# With --user "$(id -u)" the results belong to you. Without it user 1000 writes them, who may not be permitted to write to your folder.
# The image contains the weights; nothing is downloaded at run time. Read docs/security.md before you let other people connect.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
COPY . /source
RUN sh /source/tools/docker_install.sh /source /opt/skysense-o "$TORCH"

FROM python:${PYTHON}-slim-bookworm
# rasterio's wheel needs libexpat, which slim images lack.
RUN apt-get update -q && apt-get install -q -y --no-install-recommends libexpat1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/skysense-o /opt/skysense-o
RUN useradd --uid 1000 --create-home skysense && mkdir /data && chown skysense /data
# HOME and USER: a home folder and a name for every user who runs the container. torch asks for the name, and the id that --user
# gives has no name in /etc/passwd. HF_HUB_OFFLINE=1: the Hugging Face hub is not contacted.
ENV PATH=/opt/skysense-o/bin:$PATH HOME=/tmp USER=skysense HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
USER skysense
WORKDIR /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=8)"]
ENTRYPOINT ["skysense-o"]
CMD ["app", "--host", "0.0.0.0"]
