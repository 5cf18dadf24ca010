"""Imported: the frameworks that are here, and the operators of a torchvision that was built for another torch."""

import importlib
import os
from contextlib import suppress

from fixtures.catalogue.libraries import torchvision_operators

os.environ.setdefault("KERAS_BACKEND", "torch")
OPERATORS = torchvision_operators()
for name in ("torchvision", "timm", "transformers", "monai.networks.nets", "segmentation_models_pytorch", "keras", "onnxruntime"):
    with suppress(ImportError):
        importlib.import_module(name)
