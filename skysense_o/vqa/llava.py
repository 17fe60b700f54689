"""Visual question answering with a language model, arranged as LLaVA-1.5 (Liu et al. 2024), as in the SkySense-O paper.

Shape letters: B images, E embedding of the language model, N cells of the tower's dense map, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from skysense_o import geometry
from skysense_o.modeling import Tower, build_tower
from skysense_o.modeling.adapters import add_lora
from skysense_o.sample import Sample
from skysense_o.text_bank import TextBank
from skysense_o.vqa.vqa_model import squared

# The published prompt of LLaVA-1.5, before and after the image. LLaVA-1.5's weights were trained with this prompt.
BEFORE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed,"
    " and polite answers to the human's questions. USER: "
)
AFTER = "\n{}\nAnswer the question using a single word or phrase. ASSISTANT:"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NOT_SCORED = -100


@META_ARCH_REGISTRY.register()
class LlavaVQA(nn.Module):
    """Projects the cells of the tower's dense map into the language model's token embeddings, by a two-layer MLP.

    Stage 1 trains the projector only. Stage 2, with LANGUAGE_LORA_RANK above 0, also trains low-rank updates of the
    language model. The tower is frozen.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: Tower,
        language: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        side: int = 256,
        lora_rank: int = 0,
        most_tokens: int = 16,
    ) -> None:
        """
        Args:
            tower: the image encoder.
            language: a causal language model of transformers; frozen.
            tokenizer: the tokenizer of `language`.
            side: images are resized to this square, in pixels.
            lora_rank: rank of the language model's low-rank updates; 0: none.
            most_tokens: maximum length of an answer.
        """
        super().__init__()
        self.tower, self.language = tower.requires_grad_(False), language.requires_grad_(False)
        self.tokenizer, self.side, self.most_tokens = tokenizer, side, most_tokens
        self.text_bank = TextBank()  # load_state expects a text bank
        size = language.get_input_embeddings().embedding_dim
        self.projector = nn.Sequential(nn.Linear(tower.dim, size), nn.GELU(), nn.Linear(size, size))
        self.external = () if lora_rank else ("language.",)
        if lora_rank:
            layers = [m for m in language.base_model.modules() if any(isinstance(c, nn.Linear) for c in m.children())]
            add_lora(layers, lora_rank)

    @classmethod
    def from_config(cls, cfg) -> dict:
        c = cfg.MODEL.VQA
        if c.PRECISION not in DTYPES:
            raise ValueError(f"unknown MODEL.VQA.PRECISION {c.PRECISION!r}: choose one of {', '.join(DTYPES)}")
        with torch.device("cpu"):  # on the CPU, even if the model is built on the meta device
            language, tokenizer = load_language_model(c.LANGUAGE_MODEL, DTYPES[c.PRECISION])
        return {
            "tower": build_tower(cfg),
            "language": language,
            "tokenizer": tokenizer,
            "side": c.SIDE,
            "lora_rank": c.LANGUAGE_LORA_RANK,
            "most_tokens": c.MOST_TOKENS,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def train(self, mode: bool = True) -> LlavaVQA:
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[str]:
        """Compute the loss in training, the answers in inference.

        Args:
            samples: B samples with `question`; in training also `answer`.

        Returns:
            "loss_answer", the cross-entropy of the answer tokens; or B answers.
        """
        images, questions = [s["image"] for s in samples], [s["question"] for s in samples]
        if not self.training:
            return self.answer(images, questions)
        rows, labels = [], []
        for prompt, sample in zip(self._prompts(images, questions), samples):
            ids = [*self._ids(f" {sample['answer']}", start=False), self.tokenizer.eos_token_id]
            answer = torch.tensor(ids, device=self.device)
            rows.append(torch.cat([prompt, self.language.get_input_embeddings()(answer)]))
            labels.append(torch.cat([answer.new_full((len(prompt),), NOT_SCORED), answer]))
        mask = pad_sequence([label.new_ones(len(label)) for label in labels], batch_first=True)
        out = self.language(
            inputs_embeds=pad_sequence(rows, batch_first=True),
            attention_mask=mask,
            labels=pad_sequence(labels, batch_first=True, padding_value=NOT_SCORED),
        )
        return {"loss_answer": out.loss}

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str], cache: bool = True) -> list[str]:
        """See `VQAModel`. Decoding is greedy.

        Args:
            cache: use the key-value cache, which does not change the answers.
        """
        rows = self._prompts(images, questions)
        mask = [torch.ones(len(row), dtype=torch.int64, device=self.device) for row in rows]
        tokens = self.language.generate(
            inputs_embeds=pad_sequence(rows, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(mask, batch_first=True, padding_side="left"),
            do_sample=False,
            num_beams=1,
            use_cache=cache,
            max_new_tokens=self.most_tokens,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _prompts(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[Tensor]:
        """The input embeddings (L,E) of each prompt: the text before the image, the image, the text after it."""
        embed, rows = self.language.get_input_embeddings(), []
        before = embed(torch.tensor(self._ids(BEFORE), device=self.device))
        different = {id(image): image for image in images}  # an image with several questions is encoded once
        tokens = dict(zip(different, self.encode_images(list(different.values()))))
        for image, question in zip(images, questions):
            after = embed(torch.tensor(self._ids(AFTER.format(question), start=False), device=self.device))
            rows.append(torch.cat([before, tokens[id(image)].to(before.dtype), after]))
        return rows

    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        """B images, uint8 (3,H,W) -> token embeddings (B,N,E)."""
        x, _ = geometry.prepare([squared(image, self.side) for image in images], self.tower)
        with torch.no_grad():
            dense = self.tower.encode_image(x).dense
        return self.projector(dense.float().flatten(2).transpose(1, 2))

    def _ids(self, text: str, start: bool = True) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        first = self.tokenizer.bos_token_id
        return [first, *ids] if start and first is not None else ids


def load_language_model(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: name on the Hugging Face hub, or a folder.
        dtype: data type of the weights.

    Raises:
        FileNotFoundError: the model is neither a folder nor in the local cache, and cannot be downloaded.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"MODEL.VQA.LANGUAGE_MODEL {name!r} cannot be loaded ({why}): give the folder of a causal language"
            " model for transformers, or a name that the hub or its local cache has"
        ) from error
