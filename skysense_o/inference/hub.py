"""Save a model in the form of a Hugging Face repository: a folder with config.json, model.safetensors, README.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor

from skysense_o.checkpoint import save_weights, state_to_save
from skysense_o.weight_paths import HUB_LIBRARY, HUB_WEIGHTS, is_sharded
from skysense_o.whole_files import whole, write_json

CARD = """# SkySense-O: {source}

Open-vocabulary segmentation of remote sensing images: free words in, a mask for every word out.

```python
from skysense_o import Predictor

predictor = Predictor.from_pretrained("org/name")  # this repository, or the folder of a copy
segmentation = predictor("town.jpg", "building|house,road,tree")
```

{body}
"""


class HubModel(ModelHubMixin, library_name=HUB_LIBRARY, pipeline_tag="image-segmentation", tags=["remote-sensing"]):
    """Gives `Predictor` the methods `save_pretrained` and `push_to_hub` of `huggingface_hub.ModelHubMixin`.

    Attributes:
        model, source, path: see `Predictor`.
        config: YAML of the model.
        config_in_file: whether the file `path` also holds this YAML.
    """

    model: torch.nn.Module
    source: str
    path: Path | None
    config: str
    config_in_file: bool = False

    def _save_pretrained(self, save_directory: Path) -> None:
        if not self.config or (self.path is not None and self.path.is_dir() and not is_sharded(self.path)):
            raise ValueError(f"{self.source or 'this model'} has no config of this project: it cannot be saved")
        target = save_directory / HUB_WEIGHTS
        if self.path is None:
            dtype = torch.float16 if _fits_half(state_to_save(self.model)) else None
            save_weights(self.model, target, self.config, dtype)
        elif self.config_in_file:  # a model for inference has merged layers, so its weights file is saved instead
            with whole(target) as part:
                shutil.copyfile(self.path, part)
        else:
            raise ValueError(
                f"{self.path} does not hold the config that it was loaded with: load the model_final.safetensors that a"
                " training writes, or convert it first (tools/convert_checkpoint.py)"
            )
        tree = yaml.safe_load(self.config)["MODEL"]
        write_json(save_directory / "config.json", {"library_name": HUB_LIBRARY, "model": tree})

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        """The model card beside the weights file, else a card made from the config."""
        own = self.path.with_suffix(".md") if self.path is not None else None
        if own is not None and own.is_file():
            text = re.sub(r"^# .*\n+", "", own.read_text(encoding="utf-8")).replace(self.path.name, HUB_WEIGHTS)
            body = re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text)  # links into the repository lead nowhere here
        else:
            body = _facts(yaml.safe_load(self.config)["MODEL"])
        text = CARD.format(source=Path(self.source).stem, body=body.strip())
        return ModelCard(f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\n{text}")


def _facts(tree: dict) -> str:
    """The lines of a model card that describe the model's parts and training, from its config."""
    known, head = tree.get("KNOWN", {}), tree["SEM_SEG_HEAD"]["NAME"]
    classes = ", ".join(str(words).split("|")[0] for words in known.get("CLASSES", ()))
    rows = {
        "Model": f"{tree['META_ARCHITECTURE']}: {tree['TOWER']['NAME']}, {head}",
        "Trained on": ", ".join(known.get("DATASETS", ())) or "not recorded",
        "Classes": classes or "not recorded",
        "Metres per pixel": " to ".join(f"{gsd:g}" for gsd in known.get("GSD", ())) or "not recorded",
        "Results, licence": "to be filled in by whoever publishes this",
    }
    return "\n".join(f"- {name}: {text}" for name, text in rows.items())


def _fits_half(state: dict[str, Tensor]) -> bool:
    """Whether half precision stores every value exactly, as it does if the weights were read from half precision."""
    return all(
        torch.equal(tensor, tensor.to(torch.float16).to(tensor.dtype))
        for tensor in state.values()
        if tensor.is_floating_point()
    )
