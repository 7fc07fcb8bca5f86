"""A hook of mkdocs: warns (an error under --strict) when the API page of a room leaves out a name that it exports."""

import ast
import logging
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("mkdocs.hooks.check_api")


def exported(source: Path) -> list[str]:
    """The names in the `__all__` of a module."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            return ast.literal_eval(node.value)
    return []


def on_post_build(config: dict[str, str]) -> None:
    """Compare every page under api/ with the module it is named after."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = ROOT / "pyalign" / page.stem
        source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if page.stem == "index":
            continue
        html = (Path(config["site_dir"]) / "api" / page.stem / "index.html").read_text(encoding="utf-8")
        documented = set(re.findall(rf'id="pyalign\.{page.stem}\.(?:\w+\.)*(\w+)"', html))
        for name in exported(source):
            if name not in documented:
                log.warning("api/%s.md does not document %s", page.stem, name)
