"""Comma-separated tables as people and spreadsheets write them."""

import csv
import io
import re

_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"\Asep=.\r?\n")  # which some spreadsheets write above the table


def parse_table(text: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """(columns, (line, cells by column) of each row that is not blank).

    The first line says what parts the cells: commas, semicolons, tabs or bars. Columns are in small letters, blanks in their names as `_`.
    Raises csv.Error, with the line, where quotes are not closed or a row has more cells than there are columns; and for what is no text.
    """
    if "\0" in text:
        raise csv.Error("it holds NUL characters, so it is no text, such as the workbook of a spreadsheet: save it there as CSV (UTF-8)")
    table = _SEPARATOR.sub("", text.lstrip("\ufeff")).lstrip("\r\n")
    above = text[: len(text) - len(table)].count("\n")
    delimiter = max(_DELIMITERS, key=io.StringIO(table, newline=None).readline().count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        columns = [name.strip().lower().replace(" ", "_") for name in next(reader, [])]
        for cells in reader:
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise csv.Error(f"more cells than columns; put a name that holds {delimiter!r} into quotes")
            if any(cell.strip() for cell in cells):
                rows.append((above + reader.line_num, dict(zip(columns, cells + [""] * len(columns), strict=False))))
    except csv.Error as error:
        raise csv.Error(f"line {above + reader.line_num}: {error}") from None
    return columns, rows
