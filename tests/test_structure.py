"""No two files of the package import each other, directly or through others; imports for type checkers count as well."""

from __future__ import annotations

import grimp


def cycles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Groups of modules that reach each other."""
    above = {module: graph.find_upstream_modules(module) for module in graph.modules}
    groups = {frozenset({module, *(other for other in above[module] if module in above[other])}) for module in graph.modules}
    return sorted((set(group) for group in groups if len(group) > 1), key=min)


def test_no_files_import_each_other() -> None:
    assert cycles(grimp.build_graph("fgvr", cache_dir=None)) == []


def test_a_circle_of_three_would_be_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in ("ab", "bc", "ca", "cd"):
        graph.add_import(importer=importer, imported=imported)
    assert cycles(graph) == [{"a", "b", "c"}]
