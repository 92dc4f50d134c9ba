"""Hooks of mkdocs: pages made from the code, texts that stand once and are shown twice, drawings set into their pages."""

from __future__ import annotations

import logging
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from scripts import docs_reference  # noqa: E402

TOP = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that lie at the top of the repository, where people look for them."""
SHOWN_IN = {"cards.md": "how-to/models.md", "scale.md": "how-to/scale.md", "devices.md": "how-to/scale.md"}
"""Pages of docs/ that are shown as part of another one."""
_INCLUDE = re.compile(r"<!-- include: ([\w./-]+)(?:: ([^>]+?))? -->")
_SOURCES = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:scripts|benchmarks|examples|fgvr|configs|tests|notebooks|hydra_plugins)/[^)]*\)")


def on_startup(**_: Any) -> None:
    logging.getLogger("PIL").setLevel(logging.WARNING)  # which says at its lowest level what nobody reads here


def on_files(files: Files, config: Any) -> Files:
    made = docs_reference.pages()
    made |= {name: (ROOT / source).read_text(encoding="utf-8") for name, source in TOP.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in SHOWN_IN:
        if (file := files.get_file_from_path(path)) is not None:
            files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Whole texts, and links as they are right at this page's place; a link to a source file keeps its words only."""
    here: str = page.file.src_uri
    if here in TOP:
        markdown = markdown.replace("](docs/", "](")
    markdown = _INCLUDE.sub(lambda match: _included(match[1], match[2], Path(config.docs_dir), here), markdown)
    markdown = _SOURCES.sub(r"\1", markdown)
    up = "../" * here.count("/")
    for path, place in SHOWN_IN.items():
        markdown = markdown.replace(f"]({up}{path}", f"]({up}{place}")
    for path, place in TOP.items():
        markdown = markdown.replace(f"]({up}../{place}", f"]({up}{path}").replace(f"]({place}", f"]({path}")
    return markdown


def _included(path: str, section: str | None, docs: Path, here: str) -> str:
    """A text from docs/, or else from the top of the repository; of a page its text below the title, or one of its sections."""
    file = docs / path if (docs / path).is_file() else ROOT / path
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    text = text.split(f"\n## {section}\n")[1].split("\n## ")[0] if section else re.sub(r"\A# .*\n", "", text)
    up = "../" * here.count("/")
    return re.sub(r"\]\((?!\w+:|#|/)", f"]({up}", text)


def on_post_build(config: Any, **_: Any) -> None:
    """A page that would ask for anything outside fails the build."""
    pages = {file: outside(file.read_text(encoding="utf-8")) for file in Path(config.site_dir).rglob("*.html")}
    pages |= {file: _FAR_STYLE.findall(file.read_text(encoding="utf-8")) for file in Path(config.site_dir).rglob("*.css")}
    if found := [f"{file.relative_to(config.site_dir)}: {', '.join(asked)}" for file, asked in pages.items() if asked]:
        raise PluginError("\n".join(["the documentation must work offline:", *found]))


_LOADED = re.compile(r"""<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
_FAR_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""")


def outside(html: str) -> list[str]:
    """Addresses that a browser would ask when it shows this page; links that a reader may follow are none."""
    return _LOADED.findall(html) + _FAR_STYLE.findall(html)


def on_post_page(output: str, **_: Any) -> str:
    """Keys and paths break after a dot, a stroke or a sign, and not within a word: a narrow table stays readable."""
    return _CODE.sub(lambda code: _BREAK.sub(r"\g<0><wbr>", code[0]), output)


_CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
_BREAK = re.compile(r"[._=/,:](?=[\w\[{])")


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """A drawing becomes part of its page, so that it takes the page's colours, light or dark."""

    def inline(match: re.Match[str]) -> str:
        drawing = (Path(config.docs_dir) / page.file.src_uri).parent / match[2]
        label = f'<svg class="drawing" role="img" aria-label="{escape(match[1])}" '
        return f'<div class="drawn" tabindex="0">{drawing.read_text(encoding="utf-8").replace("<svg ", label, 1)}</div>'

    return re.sub(r'<img alt="([^"]*)" src="([^"]*drawings/[^"]*\.svg)"\s*/?>', inline, html)
