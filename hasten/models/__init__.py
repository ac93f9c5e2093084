"""The reference: the model as it was trained, in fp32 PyTorch, in a folder any process can open.

Whatever the user has (a Hugging Face folder or hub id, a factory, a module in memory) becomes::

    folder/
      reference.json   kind and ModelInfo; written last: a folder that has it is complete
      config.json      the original's, or a minimal one with id2label
      tokenizer.json   with tokenizer_config.json and special_tokens_map.json where there are any
      module/          huggingface  config.json and model.safetensors (or its shards)
                       factory      factory.json, which names it, and weights.safetensors
                       pickle       module.pkl, classes from __main__ and notebooks included
      int8/            model.safetensors, where hasten compress --int8 made the model
      taught.json      what texts hasten compress made it with, where it did

Every engine exports from this one truth, and every answer is compared with it.
"""

from hasten.models.comparable import require_comparable
from hasten.models.folder import Kind, ModelFolder
from hasten.models.module import load_module, runs_code
from hasten.models.padding import padding_notice
from hasten.models.preparation import prepare
from hasten.models.quantized import load_trained
from hasten.models.sensitivity import rank_layers
from hasten.models.tokenizer import reading_notice

__all__ = [
    "Kind",
    "ModelFolder",
    "load_module",
    "load_trained",
    "padding_notice",
    "prepare",
    "rank_layers",
    "reading_notice",
    "require_comparable",
    "runs_code",
]
