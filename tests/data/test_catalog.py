"""A class is found by any of its spellings and is never two."""

import pytest

from fgvr.data.catalog import Catalog
from fgvr.errors import DatasetError
from fgvr.types import Category

RAVEN = Category("107", "Common Raven", "bird", ("Corvus corax",))
CROW = Category("29", "American Crow", "bird")


@pytest.fixture
def catalog():
    return Catalog((RAVEN, CROW))


@pytest.mark.parametrize("spelling", ["common_raven", "107.Common_Raven", "CORVUS-CORAX", " Common  Raven"])
def test_any_spelling_finds_the_class(catalog, spelling):
    assert catalog.find(spelling) is RAVEN


def test_ids_and_names_keep_the_catalogues_order(catalog):
    assert catalog.ids == ("107", "29")
    assert catalog.names() == ("Common Raven", "American Crow")
    assert catalog.names(["29"]) == ("American Crow",)
    assert catalog.as_dict() == {"107": "Common Raven", "29": "American Crow"}
    assert catalog["29"] is CROW and "29" in catalog and "30" not in catalog and len(catalog) == 2


def test_an_unknown_name_gets_near_ones(catalog):
    assert catalog.find("Comon Raven") is None
    with pytest.raises(DatasetError, match="'1070'; did you mean 107"):
        catalog["1070"]


def test_an_id_given_twice_is_refused():
    with pytest.raises(DatasetError, match="more than once: 29"):
        Catalog((CROW, Category("29", "Another")))


@pytest.mark.parametrize("other", [Category("1", "common-raven"), Category("1", "Rook", aliases=("corvus_corax",))])
def test_two_classes_that_read_the_same_are_refused(other):
    with pytest.raises(DatasetError, match="read the same"):
        Catalog((RAVEN, other))


def test_a_class_may_repeat_its_own_name():
    assert len(Catalog((Category("1", "Rook", aliases=("rook", "ROOK")),))) == 1
