"""Plots: the right numbers in the right panels, scanpy's manners, clear errors."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scvi.model import SCVI

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI, datasets, pl

mpl.use("agg")


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["a", "b", "b", "a", "c"]),
            "posterior_diversity": [0.1, 0.5, 0.2, 1.1, 0.9],
        },
        index=[f"cell {i}" for i in range(5)],
    )
    return AnnData(np.ones((5, 2)), obs=obs, obsm={"X_umap": rng.normal(size=(5, 2))})


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(axes):
    """Points and their values, in the order of their x coordinate."""
    points = axes.collections[0]
    order = np.argsort(points.get_offsets()[:, 0])
    return np.asarray(points.get_offsets())[order], np.asarray(points.get_array())[order]


def test_diversity_is_drawn_where_the_cells_are(adata):
    axes = pl.posterior_diversity(adata, show=False)
    points, values = drawn(axes)
    order = np.argsort(adata.obsm["X_umap"][:, 0])
    np.testing.assert_allclose(points, adata.obsm["X_umap"][order])
    np.testing.assert_allclose(values, adata.obs["posterior_diversity"].to_numpy()[order])
    assert axes.collections[0].get_clim() == (0, 1.1)
    assert "nats" in axes.get_title()


def test_labels_come_first(adata):
    left, right = pl.posterior_diversity(adata, color="cell_type", show=False)
    assert left.get_title() == "cell_type"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b", "c"]
    assert drawn(right)[1].max() == 1.1


def test_without_labels_there_is_one_panel(adata):
    axes = pl.posterior_diversity(adata, color=None, show=False)
    assert axes.figure.axes[0] is axes
    assert drawn(axes)[1].max() == 1.1
    assert len(pl.posterior_diversity(adata, color=["cell_type"], show=False)) == 2


def test_own_axes_own_key_and_a_file(adata, tmp_path):
    adata.obs["jsd"] = adata.obs["posterior_diversity"] * 2
    _, axes = plt.subplots()
    path = tmp_path / "diversity.png"
    assert pl.posterior_diversity(adata, key="jsd", ax=axes, show=False, save=path) is axes
    assert drawn(axes)[1].max() == 2.2
    assert plt.imread(path).std() > 0


@pytest.fixture
def autoshow():
    """scanpy's setting, put back afterwards (it cannot be deleted, as monkeypatch would)."""
    before = sc.settings.autoshow
    yield lambda value: setattr(sc.settings, "autoshow", value)
    sc.settings.autoshow = before


def test_show_follows_scanpy(adata, monkeypatch, autoshow):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    autoshow(False)
    assert pl.posterior_diversity(adata, show=True) is None
    assert pl.posterior_diversity(adata) is not None
    autoshow(True)
    assert pl.posterior_diversity(adata) is None
    assert pl.posterior_diversity(adata, show=False) is not None
    assert len(shown) == 2


def test_errors_say_what_to_do(adata):
    with pytest.raises(KeyError, match="get_posterior_diversity"):
        pl.posterior_diversity(adata, key="missing")
    with pytest.raises(KeyError, match="X_tsne"):
        pl.posterior_diversity(adata, basis="tsne")
    _, axes = plt.subplots()
    with pytest.raises(ValueError, match="either ax"):
        pl.posterior_diversity(adata, color="cell_type", ax=axes)


class Model:
    """What the plots ask of a MixtureSCVI, with known posteriors of five cells: S = 2, D = 3."""

    def __init__(self, adata):
        rng = np.random.default_rng(1)
        self.adata, self.module = adata, type("Module", (), {"n_components": 2})
        self.means = rng.normal(size=(5, 2, 3))
        self.variances = rng.uniform(0.1, 2, size=(5, 2, 3))
        first = np.array([0.5, 0.1, 0.9, 0.5, 0.5])
        self.weights = np.stack([first, 1 - first], 1)
        epochs = pd.RangeIndex(20, name="epoch")
        curves = {
            "elbo_train": np.linspace(90, 50, 20),
            "elbo_validation": np.linspace(95, 60, 20),
            "jsd_train": np.linspace(0, 0.5, 20),
            "weight_0_train": np.linspace(0.5, 0.4, 20),
            "weight_1_train": np.linspace(0.5, 0.6, 20),
            "kl_weight": np.linspace(0, 2, 20).clip(max=1),
        }
        self.history = {k: pd.DataFrame({k: v}, index=epochs) for k, v in curves.items()}

    def get_component_weights(self, adata):
        return self.weights

    def get_latent_representation(self, adata, representation):
        assert representation == "params"
        return np.concatenate([self.means.reshape(5, -1), self.variances.reshape(5, -1)], 1)


def test_components_are_the_exact_marginals_in_the_plane(adata):
    model = Model(adata)
    axes = pl.components(model, ["cell 1", "cell 4"], show=False)
    background, *stars = axes.collections
    mixture = np.einsum("ns,nsd->nd", model.weights, model.means)
    centred, points = mixture - mixture.mean(0), np.asarray(background.get_offsets())
    plane = np.linalg.lstsq(centred, points, rcond=None)[0]
    np.testing.assert_allclose(centred @ plane, points, atol=1e-5)
    largest = np.linalg.svd(centred, compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), largest, rtol=1e-5)
    ellipses = iter(axes.patches)
    for star, cell in zip(stars, (1, 4), strict=True):
        expected = (model.means[cell] - mixture.mean(0)) @ plane
        np.testing.assert_allclose(star.get_offsets(), expected, atol=1e-5)
        np.testing.assert_allclose(star.get_sizes(), 80 * model.weights[cell])
        for s in range(2):
            patch = next(ellipses)
            covariance = plane.T @ np.diag(model.variances[cell, s]) @ plane
            np.testing.assert_allclose(patch.center, expected[s], atol=1e-5)
            np.testing.assert_allclose(covariance_of(patch), covariance, rtol=1e-4, atol=1e-5)
    assert "%" in axes.get_xlabel()


def covariance_of(ellipse):
    """The covariance whose ellipse of one standard deviation this is."""
    angle = np.radians(ellipse.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([ellipse.width**2 / 4, ellipse.height**2 / 4]) @ turn.T


@pytest.mark.parametrize("cells", [[4, 1], np.array([0, 1, 0, 0, 1], bool), -1, "cell 3"])
def test_cells_are_names_positions_or_a_mask(adata, cells):
    expected = {"[4, 1]": [4, 1], "-1": [4], "cell 3": [3]}.get(str(cells), [1, 4])
    model = Model(adata)
    axes = pl.components(model, cells, color="cell_type", show=False)
    sizes = [list(star.get_sizes()) for star in axes.collections[-len(expected) :]]
    np.testing.assert_allclose(sizes, 80 * model.weights[expected])


def test_colours_of_the_cells_are_those_of_adata(adata):
    adata.uns["cell_type_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    axes = pl.components(Model(adata), 0, color="cell_type", show=False, alpha=1)
    handles = axes.get_legend().legend_handles
    assert mpl.colors.to_hex(handles[1].get_facecolor()[0]) == "#00ff00"


def legend_of_stars(axes):
    """What is said of every star, by its colour; none where there is no such legend."""
    return {
        mpl.colors.to_hex(handle.get_color()): text.get_text()
        for legend in axes.artists
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
    }


@pytest.mark.parametrize("color", [None, "cell_type", "1"])
def test_the_legend_says_which_star_is_which_cell(adata, color):
    axes = pl.components(Model(adata), ["cell 3", "cell 1"], color=color, show=False)
    stars = [mpl.colors.to_hex(star.get_facecolor()[0]) for star in axes.collections[-2:]]
    assert legend_of_stars(axes) == dict(zip(stars, ["cell 3", "cell 1"], strict=True))
    assert (axes.get_legend() is not None) == (color == "cell_type")
    axes.figure.draw_without_rendering()
    (legend,) = axes.artists
    seen, figure = legend.get_window_extent(), axes.figure.bbox
    assert seen.y1 < axes.bbox.y0
    assert figure.y0 <= seen.y0
    assert seen.x1 <= figure.x1


def test_stars_whose_colours_repeat_have_no_legend(adata):
    axes = pl.components(Model(adata), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4], show=False)
    assert len(legend_of_stars(axes)) == 10
    axes = pl.components(Model(adata), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0], show=False)
    assert legend_of_stars(axes) == {}


@pytest.mark.parametrize("place", [None, "none"])
def test_no_legend_of_scanpys_is_none_of_ours(adata, place):
    axes = pl.components(Model(adata), 0, color="cell_type", show=False, legend_loc=place)
    assert axes.get_legend() is None
    assert legend_of_stars(axes) == {}


def test_components_of_a_trained_model():
    data = make_adata()
    MixtureSCVI.setup_anndata(data)
    model = MixtureSCVI(data, n_components=3, n_hidden=8, n_latent=4)
    model.train(max_epochs=2, **QUIET)
    axes = pl.components(model, [5, 7], color="donor", show=False)
    assert [len(star.get_offsets()) for star in axes.collections[-2:]] == [3, 3]
    assert len(axes.patches) == 6
    # The star's centre is the model's own latent representation, in the same plane.
    latent = model.get_latent_representation()
    points = np.asarray(axes.collections[0].get_offsets())
    plane = np.linalg.lstsq(latent - latent.mean(0), points, rcond=None)[0]
    centre = axes.lines[0].get_xydata()[0]
    np.testing.assert_allclose(centre, (latent[5] - latent.mean(0)) @ plane, atol=1e-4)
    jsd, *_ = pl.training(model, ["jsd"], show=False)
    logged = model.history["jsd_train"].to_numpy(float)[:, 0]
    np.testing.assert_allclose(jsd.lines[0].get_ydata(), logged)


def test_components_errors_say_what_is_there(adata):
    model = Model(adata)
    with pytest.raises(KeyError, match="no cell nobody: its cells are cell 0, cell 1"):
        pl.components(model, ["cell 0", "nobody"])
    with pytest.raises(KeyError, match="it has cell_type, posterior_diversity"):
        pl.components(model, 0, color="tissue")
    with pytest.raises(ValueError, match="no cell"):
        pl.components(model, [])
    with pytest.raises(ValueError, match="each of the 5 cells"):
        pl.components(model, [True, False])
    with pytest.raises(IndexError, match="below 5"):
        pl.components(model, [1, 5])
    adata.obs_names = ["cell 0", *adata.obs_names[:4]]
    with pytest.raises(ValueError, match="several cells have the same name: .* by position"):
        pl.components(model, ["cell 3"])
    assert plt.get_fignums() == []


def test_components_need_a_plane():
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata)
    model = MixtureSCVI(adata, n_components=2, n_hidden=8, n_latent=1)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match="at least two latent dimensions, but .* n_latent=1"):
        pl.components(model, [0], show=False)


def test_training_draws_the_history(adata):
    bound, jsd, weights = pl.training(Model(adata), show=False)
    train, validation = bound.lines
    np.testing.assert_allclose(train.get_ydata(), -np.linspace(90, 50, 20))
    np.testing.assert_allclose(validation.get_ydata(), -np.linspace(95, 60, 20))
    low, high = bound.get_ylim()
    assert -95 < low < -60 < -50 < high < -45
    np.testing.assert_allclose(jsd.lines[0].get_ydata(), np.linspace(0, 0.5, 20))
    np.testing.assert_allclose(jsd.lines[-1].get_ydata(), np.log(2))
    assert [line.get_ydata()[-1] for line in weights.lines] == [0.4, 0.6, 0.5]
    shaded = bound.patches[0].get_extents().transformed(bound.transData.inverted())
    assert (shaded.x0, shaded.x1) == pytest.approx((0, 10))
    assert {axes.get_xlabel() for axes in (bound, jsd, weights)} == {"epoch"}


def shaded(axes):
    """Where the axes are shaded, in epochs."""
    return [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]


@pytest.mark.parametrize("cls", [MixtureSCVI, SCVI])
def test_training_shades_a_warm_up_between_logged_steps(cls):
    """Sixteen epochs of two steps: the KL weight is logged in three of them, where it is 1."""
    data = make_adata(200)
    cls.setup_anndata(data)
    model = cls(data, n_hidden=8)
    model.train(16, plan_kwargs={"n_epochs_kl_warmup": 4}, **QUIET)
    assert list(model.history["kl_weight"].index) == [4, 9, 14]
    assert shaded(pl.training(model, "bound", show=False)) == [(0, 4)]
    model.train(4, plan_kwargs={"n_epochs_kl_warmup": 0}, **QUIET)
    model.train(4, plan_kwargs={"n_epochs_kl_warmup": 2}, **QUIET)
    axes = pl.training(model, "bound", show=False)
    assert shaded(axes) == [(0, 4), (20, 22)]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["training cells", "KL warm-up"]


def test_training_shades_by_the_weight_where_the_loss_has_other_terms(adata):
    model = Model(adata)
    model.history["kl_weight"] = model.history["kl_weight"].iloc[[4, 9, 14]]
    model.history["train_loss"] = model.history["elbo_train"] + 3
    assert shaded(pl.training(model, "bound", show=False)) == [(0, 10)]
    del model.history["kl_weight"], model.history["train_loss"]
    assert shaded(pl.training(model, "bound", show=False)) == []


def test_training_of_plain_scvi_and_into_own_axes(adata):
    model = Model(adata)
    model.history = {k: v for k, v in model.history.items() if k.startswith("elbo")}
    del model.module.n_components
    (only,) = pl.training(model, show=False)
    assert only.get_ylabel() == "ELBO (nats a cell)"
    _, axes = plt.subplots()
    assert pl.training(model, "bound", ax=axes, show=False) is axes
    assert len(axes.lines) == 2


def test_training_draws_the_history_of_a_refinement(adata):
    model = Model(adata)
    with pytest.raises(ValueError, match=r"no history of refine_encoders: call model\.refine_enc"):
        pl.training(model, method="refine_encoders")
    model.refinement_history = {k: v.iloc[:5] for k, v in model.history.items()}
    axes = pl.training(model, "bound", method="refine_encoders", show=False)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), -np.linspace(95, 60, 20)[:5])
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named[:2] == ["training cells, resampled", "validation cells"]


def test_training_errors_say_what_is_there(adata):
    model = Model(adata)
    with pytest.raises(ValueError, match="one of train, refine_encoders, not 'refine'"):
        pl.training(model, method="refine")
    with pytest.raises(ValueError, match="bound, jsd, weights, but it is loss"):
        pl.training(model, "loss")
    with pytest.raises(ValueError, match="one panel, not 3"):
        pl.training(model, ax=plt.subplots()[1])
    del model.history["jsd_train"]
    with pytest.raises(KeyError, match=r"'jsd'.*it has elbo_train, elbo_validation"):
        pl.training(model, "jsd")
    model.history = None
    with pytest.raises(ValueError, match="no history of train: call"):
        pl.training(model)


SCORES = pd.DataFrame(
    {"ARI": [0.70, 0.72, 0.50, 0.712], "nats": [3.0, 5.0, 9.0, np.nan]},
    index=["two seeds", "two seeds", "worst", "close"],
)


def test_compare_shows_means_spreads_and_what_may_be_best():
    axes = pl.compare(SCORES, lower_is_better=["nats"], show=False)
    cells = {tuple(map(int, text.get_position())): text for text in axes.texts}
    assert cells[0, 0].get_text() == "0.71 ± 0.01"
    assert cells[1, 0].get_text() == "4.00 ± 1.41"
    assert cells[1, 2].get_text() == "–"
    bold = {place for place, text in cells.items() if text.get_weight() == "bold"}
    assert bold == {(0, 0), (0, 2), (1, 0)}
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["two seeds", "worst", "close"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ARI ↑", "nats ↓"]
    shade = axes.images[0].get_array()
    assert shade[1, 0] == shade[1, 1] == shade[:, 0].min() < shade[0, 0] < shade[2, 0]
    assert shade.mask.tolist() == [[False, False], [False, False], [False, True]]


def test_one_column_may_be_given_by_its_name():
    axes = pl.compare(pd.DataFrame({"ARI": [1, 2]}), lower_is_better="ARI", show=False)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ARI ↓"]


def test_what_prints_alike_is_bold_alike():
    scores = pd.DataFrame({"nats": [-680.21, -680.19, -680.4]}, index=list("abc"))
    for digits, expected in ((1, ["bold", "bold", "normal"]), (2, ["normal", "bold", "normal"])):
        axes = pl.compare(scores, digits=digits, show=False)
        assert [text.get_weight() for text in axes.texts] == expected


def test_halves_are_bold_as_they_are_printed():
    """2.675 is a little less in binary, and prints as 2.67; a row may have no name."""
    scores = pd.DataFrame({"nats": [2.675, 2.674, 2.6]}, index=["a", None, "b"])
    axes = pl.compare(scores, show=False)
    assert [text.get_text() for text in axes.texts] == ["2.67", "2.67", "2.60"]
    assert [text.get_weight() for text in axes.texts] == ["bold", "bold", "normal"]


def test_compare_keeps_scanpy_s_manners(tmp_path):
    _, axes = plt.subplots()
    assert pl.compare(SCORES, ax=axes, show=False, save=tmp_path / "table.png") is axes
    assert plt.imread(tmp_path / "table.png").std() > 0
    assert pl.compare(SCORES.iloc[:1], show=True) is None


def test_compare_errors_say_what_is_wrong():
    with pytest.raises(TypeError, match="DataFrame, a row a model, but it is a dict"):
        pl.compare({"ARI": 1})
    with pytest.raises(TypeError, match="do not: model"):
        pl.compare(SCORES.assign(model="a"))
    with pytest.raises(ValueError, match="empty"):
        pl.compare(SCORES.iloc[:0])
    with pytest.raises(KeyError, match="no column NLL: its columns are ARI, nats"):
        pl.compare(SCORES, lower_is_better=["NLL"])


def test_a_colour_that_is_not_there_leaves_no_figure(adata):
    for color in ("nope", ["cell_type", "nope"]):
        with pytest.raises(KeyError, match="color 'nope' is neither a column of adata.obs"):
            pl.posterior_diversity(adata, color=color, show=False)
    assert not plt.get_fignums()
    assert len(pl.posterior_diversity(adata, color=adata.var_names[0], show=False)) == 2
    adata.var["symbol"] = ["Sox2", "Actb"]
    symbol = {"color": "Actb", "gene_symbols": "symbol"}
    assert len(pl.posterior_diversity(adata, **symbol, show=False)) == 2
    adata.raw = adata
    assert len(pl.posterior_diversity(adata, **symbol, show=False)) == 2


def test_one_encoder_has_no_panel_of_diversity():
    """What several components had of their training is not that of the one handed over."""
    data = make_adata()
    MixtureSCVI.setup_anndata(data)
    model = MixtureSCVI(data, n_components=2, n_hidden=8, n_latent=2)
    model.train(2, **QUIET)
    history = model.to_scvi().history
    assert {"elbo_train", "jsd_train"} <= set(model.history)
    assert "elbo_train" in history
    assert not any(name.startswith("jsd") for name in history)


def test_components_are_of_models_that_have_some(adata):
    with pytest.raises(
        TypeError, match="must be a MixtureSCVI, but it is a SCVI: see MixtureSCVI.fr"
    ):
        pl.components(object.__new__(SCVI), [0])


def test_titles_are_dealt_out(adata):
    axes = pl.posterior_diversity(adata, color="cell_type", title=["types", "JSD"], show=False)
    assert [a.get_title() for a in axes] == ["types", "JSD"]
    with pytest.raises(ValueError, match="there are 2 panels, but title has 1"):
        pl.posterior_diversity(adata, color="cell_type", title=["types"], show=False)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"ncols": 1}, "the panels stand in a row, so ncols cannot be given"),
    ({"return_fig": True}, "so return_fig cannot be given"),
    ({"save": True}, "save must be the name of a file, such as 'cells.png', but it is True"),
    ({"ax": np.array([1])}, "ax must be one matplotlib Axes, but it is a ndarray"),
    ({"save": "."}, "save must be the name of a file, but '.' is a folder"),
    ({"save": "nowhere/cells.png"}, "the folder nowhere, to save in, does not exist: make it"),
    ({"color": "cell_type", "vmin": [0]}, "there are 2 panels, but vmin has 1"),
])  # fmt: skip
def test_what_is_no_place_to_draw_into(adata, arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        pl.posterior_diversity(adata, **arguments)
    assert not plt.get_fignums()


@pytest.mark.parametrize(("cells", "sentence"), [
    (lambda adata: adata, "it is an AnnData: pass that as adata, and its .obs_names as cells"),
    (lambda adata: adata.obs, "a table of shape .*: of a DataFrame pass its .index"),
    (lambda adata: [[0, 1], [2, 3]], r"a table of shape \(2, 2\)"),
])  # fmt: skip
def test_cells_are_one_list(adata, cells, sentence):
    with pytest.raises(ValueError, match=sentence):
        pl.components(Model(adata), cells(adata))
    assert not plt.get_fignums()


@pytest.mark.parametrize("where", [
    {},
    {"use_raw": False},
    {"layer": "log"},
    {"use_raw": True},
    {"gene_symbols": "symbol"},
    {"gene_symbols": "symbol", "layer": "log"},
])  # fmt: skip
def test_genes_are_found_where_scanpy_finds_them(where):
    """Raw counts where there are any, a layer, or names of another column."""
    data = make_adata(n_cells=9)
    data.var["symbol"] = [f"S{i}" for i in range(data.n_vars)]
    data.raw = AnnData(data.X * 100, obs=data.obs[[]], var=data.var)
    data.layers["log"] = data.X.log1p()
    color = "S1" if "gene_symbols" in where else data.var_names[1]
    model = Encoded(data)
    axes = pl.components(model, [0], color, show=False, **where)
    data.obsm["X_plain"] = np.random.default_rng(0).normal(size=(9, 2))
    plain = sc.pl.embedding(data, "plain", color=color, show=False, **where)
    values = [sorted(np.asarray(a.collections[0].get_array())) for a in (axes, plain)]
    np.testing.assert_allclose(*values)


class Encoded:
    """What `pl.components` asks of a model of some cells: two components of three latents."""

    def __init__(self, adata):
        self.adata, self.params = adata, np.random.default_rng(1).normal(size=(adata.n_obs, 12))
        self.params[:, 6:] = 1

    def get_component_weights(self, adata):
        return np.full((adata.n_obs, 2), 0.5)

    def get_latent_representation(self, adata, representation):
        return self.params


def test_cells_are_masked_by_a_column_of_obs():
    data = make_adata(n_cells=9)
    data.obs["shown"] = np.arange(9) > 2
    axes = pl.components(Encoded(data), [0], mask_obs="shown", show=False)
    sizes = sum(len(points.get_offsets()) for points in axes.collections[:-1])
    assert sizes == 9, "three in grey, six in colour"


@pytest.mark.parametrize(("given", "limits", "colours"), [
    ({"vmin": [1, 0.2], "vmax": [7, 2]}, (0.2, 2), "viridis"),
    ({"color_map": "magma"}, (0, 1.1), "magma"),
    ({"norm": mpl.colors.LogNorm(0.05, 3)}, (0.05, 3), "viridis"),
])  # fmt: skip
def test_colours_of_a_panel_are_those_that_are_given(adata, given, limits, colours):
    adata.obs["other"] = np.arange(5.0)
    left, right = pl.posterior_diversity(adata, color="other", show=False, **given)
    points = right.collections[0]
    assert (points.get_clim(), points.get_cmap().name) == (limits, colours)
    if "vmax" in given:
        assert left.collections[0].get_clim() == (1, 7)


def test_a_collection_of_files_is_told_what_can_be_drawn(tmp_path):
    data = make_adata(n_cells=9)
    data.write_h5ad(tmp_path / "a.h5ad")
    collection = datasets.on_disk({"a": tmp_path / "a.h5ad"})
    with pytest.raises(KeyError, match="color must be one column of adata.obs .* but it is 'gene"):
        pl.components(Encoded(collection), [0], data.var_names[0], show=False)
    with pytest.raises(TypeError, match="an AnnData in memory, but it is a collection of files"):
        pl.posterior_diversity(collection, basis="X_mix")


def test_components_are_coloured_by_genes_too(adata):
    axes = pl.components(Model(adata), [0], color=["1"], show=False)
    assert axes.get_title() == "1"
    with pytest.raises(KeyError, match="or one gene, but it is 'nothing'"):
        pl.components(Model(adata), [0], color="nothing")
    with pytest.raises(ValueError, match="of a Series of values pass its .index"):
        pl.components(Model(adata), adata.obs["posterior_diversity"].nlargest(2))


def test_a_training_without_a_logger_has_no_history():
    class Silent:
        history = {}

    with pytest.raises(ValueError, match="is empty: it ran with logger=False, or with a logger of"):
        pl.training(Silent())


def test_scores_of_one_name_are_told_apart():
    with pytest.raises(ValueError, match="scores has several columns of the name b"):
        pl.compare(pd.DataFrame([[0.1, 0.2]], columns=["b", "b"]))


def test_compare_takes_pandas_own_missing_values():
    scores = pd.DataFrame({"ARI": [0.7, None], "NMI": [0.6, 0.5]}, index=["a", "b"])
    axes = pl.compare(scores.convert_dtypes(), show=False)
    texts = [text.get_text() for text in axes.texts]
    plt.close(axes.figure)
    axes = pl.compare(scores, show=False)
    assert texts == [text.get_text() for text in axes.texts]
    plt.close(axes.figure)


def test_axes_of_a_subfigure_are_saved_with_the_whole(tmp_path):
    figure = plt.figure()
    axes = figure.subfigures(1, 2)[1].subfigures(2, 1)[0].subplots()
    scores = pd.DataFrame({"ARI": [0.7]}, index=["a"])
    pl.compare(scores, show=False, ax=axes, save=tmp_path / "a.png")
    assert plt.imread(tmp_path / "a.png").size > 0
    plt.close(figure)


@pytest.mark.parametrize("cmap", ["YlGn", "viridis", "Greys"])
def test_scores_can_be_read_on_their_colours_in_any_style(cmap):
    scores = pd.DataFrame({"ARI": [0.7, 0.8, 0.9], "NMI": [0.5, None, 0.6]}, index=["a", "b", "c"])
    with plt.style.context("dark_background"):
        axes = pl.compare(scores, cmap=cmap, show=False)
    image = axes.images[0]
    for text in axes.texts:
        column, row = map(int, text.get_position())
        light = image.to_rgba(image.get_array())[row, column, :3].mean()
        assert abs(light - mpl.colors.to_rgb(text.get_color())[0]) > 0.4
    plt.close(axes.figure)


def test_diversity_is_drawn_of_data_and_not_of_a_model(adata):
    with pytest.raises(TypeError, match=r"it is a Model: of a model pass model\.adata"):
        pl.posterior_diversity(Model(adata))
