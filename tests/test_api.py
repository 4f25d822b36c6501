import ast
from pathlib import Path

import pytest

import ddim_edit

LISTED = (Path(__file__).parent / "api.txt").read_text(encoding="utf-8").split()


def test_the_public_names_are_those_of_the_file():
    assert ddim_edit.__all__ == LISTED


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ddim_edit.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [alias for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(alias.asname or "" for alias in seen) == LISTED
    assert all(alias.name == alias.asname for alias in seen)


@pytest.mark.parametrize("name", LISTED)
def test_a_public_name_can_be_imported_and_explains_itself(name):
    value = getattr(ddim_edit, name)
    for item in value.values() if isinstance(value, dict) else (value,):
        text = vars(item).get("__doc__") if isinstance(item, type) else item.__doc__
        assert text
        # Dataclasses and named tuples without a docstring get their signature for one.
        assert not text.startswith(f"{item.__name__}(")


def test_dir_lists_the_public_names():
    assert dir(ddim_edit) == LISTED


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ddim_edit' has no attribute 'encoder'"):
        _ = ddim_edit.encoder
