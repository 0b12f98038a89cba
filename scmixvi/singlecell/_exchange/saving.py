"""How models are read from files and written to them."""

import inspect
import os
import tempfile
import warnings
from typing import Any

from anndata import AnnData
from scvi.data._constants import _MODEL_NAME_KEY
from scvi.model.base._constants import SAVE_KEYS

from scmixvi.singlecell._checks.arguments import check_folder, check_query_order
from scmixvi.singlecell._checks.queries import check_query_genes
from scmixvi.singlecell._exchange.files import (
    PICKLING,
    check_legacy_files,
    check_model_file,
    check_staged_file,
    replace_files,
    saved_class,
)
from scmixvi.singlecell._exchange.freezing import FREEZING, freeze


def _check_class(name: str | None, expected: tuple[str, ...]) -> None:
    """Raise ValueError for the name of another class; None is not known, and passes."""
    if name is not None and name not in expected:
        raise ValueError(
            f"the model is no {expected[0]}, but of class {name}: load an SCVI with "
            "scvi.model.SCVI.load, and make a mixture of it with MixtureSCVI.from_scvi_model."
        )


def _class_of(reference_model: Any) -> str | None:
    """Name of the class of a model, or of the one saved in a folder."""
    if isinstance(reference_model, str):
        return saved_class(reference_model)
    return getattr(reference_model, "registry_", {}).get(_MODEL_NAME_KEY)


class CheckedFiles:
    """Before a model of scvi-tools: every method that reads a saved model checks the file first.

    scvi-tools unpickles model files in each of them, and unpickling runs what the file names.
    """

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: dict | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as :meth:`scvi.model.SCVI.save` does; old files go only when new ones are whole.

        Raises
        ------
        ValueError
            If the folder exists and `overwrite` is False, if its name is empty, or if :meth:`load`
            would refuse the file.
        """
        check_folder(dir_path)
        save_kwargs = {"pickle_module": PICKLING} | (save_kwargs or {})
        further = (save_anndata, save_kwargs, *args)
        if os.path.exists(dir_path) and not overwrite:
            super().save(dir_path, prefix, overwrite, *further, **kwargs)  # raises its message
        target = os.path.realpath(dir_path)
        beside = target if os.path.isdir(target) else os.path.dirname(target)
        os.makedirs(beside, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".saving-") as staging:
            super().save(staging, prefix, True, *further, **kwargs)
            check_staged_file(staging, prefix)
            replace_files(staging, target)
        left = os.path.join(target, f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}")
        if not save_anndata and os.path.exists(left):
            warnings.warn(
                f"{left} was there before, and load({os.fspath(dir_path)!r}) will give it to this "
                "model, right or wrong: save with save_anndata=True, pass adata to load, or "
                "delete the file.",
                UserWarning,
                stacklevel=2,
            )

    @classmethod
    def load(cls, dir_path: str, adata: AnnData | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load as :meth:`scvi.model.SCVI.load` does, after checking that the file holds only data.

        A query model trains what it trained before. (scvi-tools forgets what was frozen.)

        Raises
        ------
        ValueError
            If the file is damaged, is not a saved model, or one of another class, or would run
            code when loaded; if the cells' genes stand in another order, or a category is not one
            of the model's.
        """
        bound = inspect.signature(super().load).bind(dir_path, adata, *args, **kwargs).arguments
        prefix, allowed = bound.get("prefix"), bound.get("allowed_classes_names_list") or ()
        check_model_file(dir_path, prefix, bound.get("backup_url"))
        _check_class(saved_class(dir_path, prefix), (cls.__name__, *allowed))
        model = super().load(dir_path, adata, *args, **kwargs)
        freeze(model, getattr(model, "query_freezing_", None))
        return model

    @classmethod
    def load_query_data(
        cls, adata: AnnData | None = None, reference_model: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Map query cells onto a reference as :meth:`scvi.model.SCVI.load_query_data` does.

        Raises
        ------
        ValueError
            If the arguments stand in each other's place, there are no cells, the reference is a
            model without data, the genes are not the reference's, new categories are text where
            its own are numbers, or the other way round, or as in :meth:`load` of a file.
        """
        check_query_order(adata, reference_model)
        reference_model = cls._checked(reference_model)
        _check_class(_class_of(reference_model), (cls.__name__,))
        bound = inspect.signature(super().load_query_data).bind(
            adata, reference_model, *args, **kwargs
        )
        bound.apply_defaults()
        given = bound.arguments
        has_both = adata is not None and reference_model is not None
        if has_both and not given["inplace_subset_query_vars"]:
            genes = super().prepare_query_anndata(
                adata, reference_model, return_reference_var_names=True
            )
            check_query_genes(adata.var_names, genes)
        model = super().load_query_data(adata, reference_model, *args, **kwargs)
        model.query_freezing_ = {name: given[name] for name in FREEZING}
        return model

    @staticmethod
    def _checked(reference_model: Any) -> Any:
        """A model as it is; a path once its file is known to hold only data."""
        if isinstance(reference_model, str | os.PathLike):
            reference_model = os.fspath(reference_model)
            check_model_file(reference_model)
        return reference_model

    @classmethod
    def prepare_query_anndata(
        cls, adata: AnnData, reference_model: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As :meth:`scvi.model.SCVI.prepare_query_anndata`, after the check of :meth:`load`."""
        return super().prepare_query_anndata(adata, cls._checked(reference_model), *args, **kwargs)

    @classmethod
    def prepare_query_mudata(
        cls, mdata: Any, reference_model: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As :meth:`scvi.model.SCVI.prepare_query_mudata`, after the check of :meth:`load`."""
        return super().prepare_query_mudata(mdata, cls._checked(reference_model), *args, **kwargs)

    @classmethod
    def load_registry(cls, dir_path: str, prefix: str | None = None) -> dict:
        """As :meth:`scvi.model.SCVI.load_registry`, after the check of :meth:`load`."""
        check_model_file(dir_path, prefix)
        return super().load_registry(dir_path, prefix)

    @classmethod
    def view_setup_args(cls, dir_path: str, prefix: str | None = None) -> None:
        """As :meth:`scvi.model.SCVI.view_setup_args`, after the check of :meth:`load`."""
        check_model_file(dir_path, prefix)
        super().view_setup_args(dir_path, prefix)

    @classmethod
    def convert_legacy_save(
        cls, dir_path: str, output_dir_path: str, *args: Any, **kwargs: Any
    ) -> None:
        """As :meth:`scvi.model.SCVI.convert_legacy_save`, after the check of :meth:`load`."""
        bound = inspect.signature(super().convert_legacy_save).bind(
            dir_path, output_dir_path, *args, **kwargs
        )
        check_legacy_files(dir_path, bound.arguments.get("prefix"))
        super().convert_legacy_save(dir_path, output_dir_path, *args, **kwargs)
