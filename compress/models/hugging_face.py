"""Classes of diffusers and transformers: imported when one is first needed, because that takes seconds, and without what they say about packages
that happen to be installed beside them."""

from __future__ import annotations

import importlib
import logging

from mcompress.errors import MissingBackendError


def class_of(module: str, name: str) -> type:
    """The class `name` of a module such as `diffusers`. Raises `MissingBackendError`, which says how to install it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        found: type = getattr(importlib.import_module(module), name)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingBackendError(
            f"{name} is a class of {package}, which cannot be imported ({error}); Stable Diffusion needs it: pip install 'mcompress[text2image]'"
        ) from error
    finally:
        logging.disable(before)
    return found
