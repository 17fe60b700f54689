"""A causal language model of a few thousand random weights, in a folder as transformers writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skysense_o.vqa.llava import AFTER, BEFORE

QUESTIONS = ("what colour is it?", "how many?")
ANSWERS = ("red", "one", "green", "two", "blue", "three", "yellow", "four and more")


def make_llama(folder: Path) -> Path:
    """Save a two-layer language model with random weights and a tokenizer of the tests' words; return its folder."""
    words = dict.fromkeys(["<unk>", "<s>", "</s>"])
    splitter = pre_tokenizers.Whitespace()
    for text in (BEFORE, AFTER, *QUESTIONS, *ANSWERS):
        words.update(dict.fromkeys(word for word, _ in splitter.pre_tokenize_str(text)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
