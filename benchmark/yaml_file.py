"""Reading YAML files that people write: every problem is one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from seedbed.benchmark.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file in UTF-8 or, with a byte order mark, UTF-16.

    Raises ConfigError, in one line, if the file is missing, unreadable, or not YAML.
    """
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{path}: not a text file in UTF-8 (position {error.position}: {error.reason}); save it as UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        tab = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{path}: not YAML ({where}{error.problem}{tab})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A date such as 2012-13-45, or thousands of nested brackets.
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
