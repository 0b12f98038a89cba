"""Command line: `python -m scmixvi.image fit|test --config configs/mlp_mnist.yaml [--KEY VALUE]`.

Every argument of :func:`scmixvi.image.lightning.recipe_training` is a `--model.` key, of
:class:`scmixvi.image.data.ImageDataModule` a `--data.` key, of Lightning's Trainer a `--trainer.`
key. A configuration that is no file here, and names no other folder than `configs`, is looked for
among those that ship with the package.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from scmixvi._signals import ending_at_once, status_of_ending
from scmixvi.core.memory import keep_freed_memory
from scmixvi.image._checks import check_one_device
from scmixvi.image._cli_checks import COMPILE_MODES, check_batches, check_words
from scmixvi.image._folders import alone_in
from scmixvi.image._settings import run_settings
from scmixvi.image.callbacks import TestReport, best_checkpoint, early_stopping, last_checkpoint
from scmixvi.image.checkpoints import check_settings, finished_epochs, read_checkpoint
from scmixvi.image.data import ImageDataModule
from scmixvi.image.lightning import TRAINER_DEFAULTS, recipe_training
from scmixvi.records import check_writable

CONFIGS = Path(__file__).parent / "configs"


def shipped_config(name: str) -> str:
    """Path of a configuration: the file itself, or that of the package with such a name.

    Names of the package's are `mlp_mnist.yaml` and `configs/mlp_mnist.yaml`; which file is taken
    for one is printed.

    Raises
    ------
    FileNotFoundError
        If there is neither; lists the shipped ones.
    """
    shipped = CONFIGS / Path(name).name
    if Path(name).is_file():
        return name
    if shipped.is_file() and shipped.match(name):
        print(f"The configuration is {shipped}.", file=sys.stderr)
        return str(shipped)
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(f"there is no configuration {name}; shipped with scmixvi are {known}.")


class ImageCLI(LightningCLI):
    """`fit`, which ends with a test of the best weights, and `test`."""

    def __init__(self, *args: Any, folders: ExitStack, **kwargs: Any) -> None:
        self._folders = folders  # held until the program ends
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only fit and test."""
        both = LightningCLI.subcommands()
        return {name: both[name] | {"weights_only"} for name in ("fit", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Early stopping, checkpoints and the report, and how to compile."""
        parser.add_lightning_class_args(early_stopping, "early_stopping")
        parser.add_lightning_class_args(best_checkpoint, "best_checkpoint")
        parser.add_lightning_class_args(last_checkpoint, "last_checkpoint")
        parser.add_lightning_class_args(TestReport, "report")
        parser.add_argument(
            "--compile",
            type=str | None,
            default=None,
            help=f"mode of torch.compile: {', '.join(COMPILE_MODES)}",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Find shipped configurations and refuse a bad checkpoint, before anything is built.

        A training that goes on keeps its seed.
        """
        words = list(sys.argv[1:] if args is None else args)
        try:
            for i, word in enumerate(words):
                key, _, value = word.partition("=")
                if key in ("--config", "-c"):
                    words[i] = f"{key}={shipped_config(value)}" if value else word
                elif i and words[i - 1] in ("--config", "-c"):
                    words[i] = shipped_config(word)
            self.config = parser.parse_args(words)
            check_words(self.config[self.config.subcommand], self.config.subcommand)
            self._check_checkpoint()
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: Lightning would import whatever they name."""

    def before_instantiate_classes(self) -> None:
        """Give the run a folder of its own, unless one was named, and a bar that costs no time.

        What goes on from a checkpoint, or tests it, goes beside it; a test leaves the files alone
        that `fit` has written.
        """
        config = self.config[self.config.subcommand]
        trainer = config.trainer
        if trainer.default_root_dir is None:
            beside = config.ckpt_path and Path(config.ckpt_path).parent
            trainer.default_root_dir = str(beside or self._default_folder(config))
        for checkpoint in (config.best_checkpoint, config.last_checkpoint):
            checkpoint.folder = checkpoint.folder or trainer.default_root_dir
        if self.config.subcommand == "test":
            fitted, tested = self._checkpoint.get("settings", {}), config.data.dataset
            other = "" if fitted.get("dataset", tested) == tested else f"_on_{tested}"
            name = f"test_{Path(config.ckpt_path).stem}{other}"
            config.report.name = config.report.name or name
        elif not trainer.fast_dev_run:
            self._check_folders(config)
        if trainer.logger is None:
            trainer.logger = _part(
                "loggers.CSVLogger", save_dir=trainer.default_root_dir, name="logs"
            )
        given = (resolve_name(callback.class_path) for callback in trainer.callbacks or [])
        has_bar = any(isinstance(c, type) and issubclass(c, ProgressBar) for c in given)
        if trainer.enable_progress_bar is not False and not has_bar:
            bar = _part("callbacks.RichProgressBar", refresh_rate=50)
            trainer.callbacks = [*(trainer.callbacks or []), bar]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; a number of devices that is none ends with Lightning's sentence."""
        try:
            return super().instantiate_trainer(**kwargs)
        except TypeError as error:
            raise ValueError(f"trainer: {error}") from error

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a wrong value ends the program with its sentence."""
        path = self._get(self.config, "ckpt_path")
        try:
            super().instantiate_classes()
            check_one_device(self.trainer.num_devices * self.trainer.num_nodes)
            self._check_sizes()
            check_batches(self.trainer, self.datamodule, self.config.subcommand)
            if path:  # Lightning does it later
                self._check_loaded(self._checkpoint)
                del self._checkpoint  # its weights
        except (FileNotFoundError, ValueError, MisconfigurationException) as error:
            self.parser.error(str(error))
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
        mode = self._get(self.config, "compile")
        if mode is not None:
            self.model.vae.compile(mode=mode)
            self.model.compile_mode = mode

    def before_fit(self) -> None:
        """Hold the folders of the training, so that no other one writes there meanwhile."""
        config = self.config[self.config.subcommand]
        if config.trainer.fast_dev_run:
            return
        self._check_report(config)
        try:
            for folder in {Path(folder).resolve() for folder in self._own_folders(config)}:
                self._folders.enter_context(alone_in(folder))
        except (OSError, ValueError) as error:
            self.parser.error(str(error))
        self._check_folders(config)  # again: what ended since the first look may lie there

    def before_test(self) -> None:
        """Let the program be told to end at any time: a test leaves nothing half done."""
        self._check_report(self.config[self.config.subcommand])
        self._folders.enter_context(ending_at_once())

    def after_fit(self) -> None:
        """Test the best weights; the last, where training ended before its first validation."""
        if self.trainer.interrupted or self._get(self.config, "trainer").fast_dev_run:
            return
        best = self._get(self.config_init, "best_checkpoint").best_model_path
        path = Path(best)
        if not path.is_file():
            path = Path(self._get(self.config_init, "last_checkpoint").dirpath) / "last.ckpt"
            if not path.exists():
                self.trainer.save_checkpoint(path)
            why = f"{best} is gone" if best else "No epoch was validated"
            print(f"{why}: the last weights are tested, {path}.")
        self.before_test()
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=str(path))

    @staticmethod
    def _default_folder(config: Namespace) -> str:
        name = f"{config.model.recipe}_{config.data.dataset}_S{config.model.n_components}"
        return f"runs/{name}_seed{config.seed_everything}"

    def _last_folder(self, config: Namespace) -> str:
        named = config.last_checkpoint.folder or config.trainer.default_root_dir
        return named or self._default_folder(config)

    @staticmethod
    def _own_folders(config: Namespace) -> tuple[str, ...]:
        checkpoints = (config.best_checkpoint, config.last_checkpoint)
        return config.trainer.default_root_dir, *(c.folder for c in checkpoints)

    def _check_folders(self, config: Namespace) -> None:
        """Refuse folders that hold another training than the one to go on with."""
        own = Path(config.ckpt_path).parent if config.ckpt_path else None
        for name in self._own_folders(config):
            last = Path(name) / "last.ckpt"
            if last.exists() and not (own and own.samefile(name)):
                self.parser.error(
                    f"{last} is of an earlier training: go on with it by --ckpt_path {last}, or "
                    "name another folder by --trainer.default_root_dir."
                )
        best, folder = own and own / "best.ckpt", Path(config.best_checkpoint.folder)
        if best and best.exists() and not (folder.exists() and best.parent.samefile(folder)):
            keys = ("trainer.default_root_dir", "best_checkpoint.folder", "last_checkpoint.folder")
            beside = ", ".join(f"--{key}={own}" for key in keys)
            self.parser.error(
                f"the best epoch so far, {best}, would be forgotten in {folder}: pass {beside} to "
                "go on beside it, or go on from a copy of last.ckpt in a folder of its own."
            )

    def _check_report(self, config: Namespace) -> None:
        """Refuse a folder in which no report could be written, before there is one."""
        try:
            check_writable(config.report.folder or config.trainer.default_root_dir)
        except OSError as error:
            self.parser.error(str(error))

    def _check_sizes(self) -> None:
        made, data = self.model.vae.image_size, self.datamodule.source.image_size
        if tuple(made) != data:
            raise ValueError(
                f"the model is made for images (C, H, W) = {tuple(made)}, but those of "
                f"{self.datamodule.dataset} are {data}: choose another recipe or image_size."
            )
        takes_grey = bool(self.model.vae.support.check(torch.full((1, *data), 0.5)).all())
        if not self.datamodule.source.binary and not takes_grey:
            raise ValueError(
                f"{self.datamodule.dataset} has grey values, to which this model's decoder of "
                "binary pixels gives no likelihood: choose another recipe, as cifar_vanilla."
            )

    def _check_loaded(self, checkpoint: dict[str, Any]) -> None:
        self.model.on_load_checkpoint(checkpoint)
        if self.config.subcommand == "fit":
            run = run_settings(self.trainer, self.datamodule)
            check_settings(checkpoint.get("settings", {}), self.model.settings | run)
            self._check_epochs(checkpoint)

    def _check_epochs(self, checkpoint: dict[str, Any]) -> None:
        finished, wanted = finished_epochs(checkpoint), self.trainer.max_epochs
        if self._get(self.config, "trainer").fast_dev_run:
            return
        if wanted is not None and 0 <= wanted < finished:
            raise ValueError(
                f"the checkpoint has {finished} epochs behind it, and trainer.max_epochs "
                f"is {wanted}: name more, or test it with the subcommand test."
            )

    def _check_checkpoint(self) -> None:
        config = self.config[self.config.subcommand]
        if self.config.subcommand == "fit" and config.get("ckpt_path") == "last":
            last = Path(self._last_folder(config)) / "last.ckpt"
            config.ckpt_path = str(last) if last.exists() else None
        path = config.get("ckpt_path")
        if self.config.subcommand == "test" and not path:
            raise ValueError("say which weights to test: --ckpt_path runs/NAME/best.ckpt.")
        if path:
            self._checkpoint = read_checkpoint(path)
            settings = self._checkpoint.get("settings", {})
            if self.config.subcommand == "fit" and settings.get("fit_seed") is not None:
                config.seed_everything = settings["fit_seed"]


def _part(which: str, **arguments: Any) -> Namespace:
    """Name one of Lightning's classes and its arguments, as a configuration does."""
    return Namespace(class_path=f"lightning.pytorch.{which}", init_args=Namespace(**arguments))


def main(args: list[str] | None = None) -> ImageCLI:
    """Run the command line, with `args` in place of the program's own.

    Raises
    ------
    SystemExit
        With 143 where the process is told to end (SIGTERM), as shells say of one that was.
    """
    with status_of_ending():
        return _run(args)


def _run(args: list[str] | None) -> ImageCLI:
    with ExitStack() as folders:
        return ImageCLI(
            recipe_training,
            ImageDataModule,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                **TRAINER_DEFAULTS,
                "max_epochs": 2000,
                "plugins": [{"class_path": "scmixvi.image.callbacks.SafeCheckpoints"}],
            },
            auto_configure_optimizers=False,
            args=args,
            folders=folders,
        )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    main()
