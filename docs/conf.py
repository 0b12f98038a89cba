"""Sphinx configuration. `make docs` builds with warnings as errors, with or without a network."""

import shutil
import urllib.request
from importlib.metadata import version as version_of
from pathlib import Path

project = "scmixvi"
author = "The scmixvi developers"
copyright = "2026, the scmixvi developers"
release = version = version_of("scmixvi")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
exclude_patterns += ["experiments_images.md"]  # a part of experiments.md

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # nothing trains while the documentation builds

autosummary_generate = True
autodoc_typehints = "none"  # the signature has them already
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
templates_path = ["_templates"]

nitpicky = True  # a reference to an object of ours must lead somewhere
nitpick_ignore_regex = [
    ("py:.*", r"(?!scmixvi\.).*"),
    ("py:class", r"scmixvi\.singlecell\._exchange\.saving\.CheckedFiles"),  # a base, not for users
]

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

default_role = "code"  # single backticks in docstrings are code
html_theme = "sphinx_book_theme"
html_title = "scmixvi"
html_copy_source = False
html_theme_options = {"navbar_persistent": []}  # the sidebar has a search button already
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scvi-tools": "https://docs.scvi-tools.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def reachable(url: str) -> bool:
    """Whether an inventory can be fetched; without it its names are plain text, not links."""
    try:
        with urllib.request.urlopen(url + "objects.inv", timeout=5) as answer:
            return answer.status == 200
    except OSError:  # no network, no answer in time, not found
        return False


intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if reachable(url)}


def copy_tutorials() -> None:
    """Put the notebooks where Sphinx finds them: it reads nothing outside its own folder."""
    here = Path(__file__).parent
    target = here / "_tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((here.parent / "tutorials").glob("*.ipynb")):
        shutil.copy(notebook, target)


copy_tutorials()
