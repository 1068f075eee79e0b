"""Libraries of the extra `data`, loaded when a source or a tokenizer needs one."""

import importlib
from typing import Any

from swarmd.errors import ConfigError


def extra(module: str, what: str = "data source") -> Any:
    """A library that comes with the extra `data`. Raises ConfigError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(f"this {what} needs {library}; run pip install {library}.") from error
