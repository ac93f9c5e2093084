from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hasten import tasks
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.models import prepare
from hasten.tasks import Encoded, Form, Outputs
from tests.tiny import save_tiny

LABELS = ("sport", "business", "tech")
NAMES = ("single_label", "multi_label", "regression", "tensors")
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def rows(*values: list[float]) -> Outputs:
    return Outputs.of_rows(values)


NO_TEXTS: Any = Encoded((), None)  # type: ignore[arg-type] # these tasks do not look at them


def matrices(least_columns: int) -> st.SearchStrategy[NDArray[np.float32]]:
    shapes = st.tuples(st.integers(1, 6), st.integers(least_columns, 4))
    # Beyond 88 the exponential of a float32 overflows.
    return hnp.arrays(np.float32, shapes, elements=st.floats(-120, 120, width=32))


def pipeline_answers(
    outputs: NDArray[np.float32],
    problem_type: str | None,
    labels: tuple[str, ...],
    **options: Any,
) -> list[Any]:
    """What transformers itself makes of ``outputs``; ``options`` as given to its pipeline."""
    torch = pytest.importorskip("torch")
    from transformers import TextClassificationPipeline

    config = SimpleNamespace(
        problem_type=problem_type, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    pipeline: Any = TextClassificationPipeline.__new__(TextClassificationPipeline)
    pipeline.model = SimpleNamespace(config=config)
    _, _, parameters = pipeline._sanitize_parameters(**options)
    with np.errstate(over="ignore"):
        return [
            pipeline.postprocess({"logits": torch.from_numpy(row[None])}, **parameters)
            for row in outputs
        ]


class TestAnswers:
    @pytest.mark.parametrize("name", PROBLEM_TYPES)
    @pytest.mark.parametrize("top_k", ["not given", 1, 2, 9, None])
    def test_they_are_those_of_the_transformers_pipeline(self, name: str, top_k: Any) -> None:
        outputs = np.random.default_rng(0).normal(scale=4, size=(50, 3)).astype(np.float32)
        outputs[0] = 0.0  # equal scores keep the order of the labels
        outputs[1] = [200, -200, 190]
        options = {} if top_k == "not given" else {"top_k": top_k}
        expected = pipeline_answers(outputs, PROBLEM_TYPES[name], LABELS, **options)
        if top_k == "not given":
            answers = tasks.get(name).answers(Outputs.of_rows(outputs), LABELS, NO_TEXTS)
        else:
            task = tasks.get(name)
            form = Form(top_k, bare=False)
            answers = task.answers(Outputs.of_rows(outputs), LABELS, NO_TEXTS, form)
        assert answers == expected  # to the last bit

    @pytest.mark.parametrize("problem_type", [None, *PROBLEM_TYPES.values()])
    def test_a_single_label_gets_what_the_pipeline_gives_it(self, problem_type: str | None) -> None:
        outputs = rows([-3.0], [0.0], [2.5])
        task = tasks.claiming({"problem_type": problem_type, "num_labels": 1})
        assert task.answers(outputs, ("score",), NO_TEXTS) == pipeline_answers(
            outputs.values, problem_type, ("score",)
        )

    def test_they_are_plain_python(self) -> None:
        (answer,) = tasks.get("single_label").answers(rows([0.0, 2.0, 1.0]), LABELS, NO_TEXTS)
        assert isinstance(answer, dict)
        assert list(answer) == ["label", "score"]
        assert type(answer["score"]) is float

    def test_bare_means_nothing_for_more_than_one_label(self) -> None:
        task, outputs = tasks.get("single_label"), rows([0.0, 2.0, 1.0])
        assert task.answers(outputs, LABELS, NO_TEXTS, Form(2)) == task.answers(
            outputs, LABELS, NO_TEXTS, Form(2, bare=False)
        )

    def test_tensors_are_lists_of_numbers(self) -> None:
        assert tasks.get("tensors").answers(rows([1.5, -2.0], [0.0, 4.0]), (), NO_TEXTS) == [
            [1.5, -2.0],
            [0.0, 4.0],
        ]

    @pytest.mark.parametrize("name", PROBLEM_TYPES)
    def test_no_texts_have_no_answers(self, name: str) -> None:
        assert tasks.get(name).answers(Outputs.of_rows(np.empty((0, 3))), LABELS, NO_TEXTS) == []

    @pytest.mark.parametrize("name", PROBLEM_TYPES)
    def test_every_column_needs_a_label(self, name: str) -> None:
        with pytest.raises(ModelError, match="3 numbers a text and names 2 labels"):
            tasks.get(name).answers(rows([1, 2, 3]), LABELS[:2], NO_TEXTS)


class TestDecisions:
    def test_the_largest_logit_decides(self) -> None:
        outputs = rows([0.1, 0.2, -5], [3, 2, 1])
        assert tasks.get("single_label").decisions(outputs).tolist() == [1, 0]

    def test_every_label_decides_for_itself(self) -> None:
        outputs = rows([-1, 0, 2], [-1, -0.001, -2])
        assert tasks.get("multi_label").decisions(outputs).tolist() == [
            [False, True, True],
            [False, False, False],
        ]

    @pytest.mark.parametrize("name", ["regression", "tensors"])
    def test_numbers_decide_nothing(self, name: str) -> None:
        task = tasks.get(name)
        assert not task.decides
        assert task.decisions(rows([1, 2], [3, 4])).shape == (2, 0)
        assert task.margins(rows([1, 2]), rows([2, 1])).tolist() == [0.0]
        assert task.gold(["x"], ("a", "b")) is None
        assert task.sureness(rows([1, 2])).tolist() == [0.0]

    def test_sureness_is_the_way_to_the_next_decision(self) -> None:
        assert tasks.get("single_label").sureness(rows([1, 4, 2.5])).tolist() == [1.5]
        assert tasks.get("multi_label").sureness(rows([-3, 0.5, 2])).tolist() == [0.5]

    def test_one_column_cannot_be_a_choice(self) -> None:
        task, outputs = tasks.get("single_label"), rows([1.0])
        readings = (
            task.decisions,
            lambda o: task.margins(o, o),
            lambda o: task.answers(o, ("a",), NO_TEXTS),
        )
        for reading in readings:
            with pytest.raises(ModelError, match="not a choice among labels"):
                reading(outputs)


class TestMargins:
    def test_a_choice_is_as_sure_as_its_lead_over_the_other_choice(self) -> None:
        outputs = rows([0.5, 2.0, 1.5], [3, 2.9, -1], [1, 0, 0])
        # The second is nearly tied, but not with the label that the other side chose.
        others = rows([0, 0, 1], [0, 0, 1], [1, 0, 0])
        assert tasks.get("single_label").margins(outputs, others).tolist() == [0.5, 4.0, 0.0]

    def test_several_labels_are_as_sure_as_the_surest_that_changed(self) -> None:
        outputs, others = rows([-3, 0.25, 8], [-3, 0.25, 8]), rows([-3, -1, 8], [1, -1, 8])
        assert tasks.get("multi_label").margins(outputs, others).tolist() == [0.25, 3.0]

    @given(matrices(2), st.sampled_from(["single_label", "multi_label"]), st.data())
    def test_only_what_moves_by_the_margin_decides_otherwise(
        self, outputs: NDArray[np.float32], name: str, data: st.DataObject
    ) -> None:
        task = tasks.get(name)
        moves = hnp.arrays(np.float32, outputs.shape, elements=st.floats(-2, 2, width=32))
        others = outputs + data.draw(moves)
        both = Outputs.of_rows(outputs), Outputs.of_rows(others)
        margins = task.margins(*both)
        assert margins.dtype == np.float64
        same = ~task.changed(*both)
        assert (margins[same] == 0).all()
        # A lead falls with the one logit and with the other; a distance from zero with one only.
        moved = np.abs(others.astype(np.float64) - outputs).max(axis=1)
        reach = moved * (2 if name == "single_label" else 1)
        assert (margins >= 0).all()
        assert (margins <= reach + 1e-6).all()


class TestWords:
    def test_a_choice_is_a_name(self) -> None:
        assert tasks.get("single_label").describe(rows([0, 3, 1])[0], LABELS) == "business"

    def test_several_labels_are_listed(self) -> None:
        task = tasks.get("multi_label")
        assert task.describe(rows([2, -1, 1])[0], LABELS) == "sport, tech"
        assert task.describe(rows([-2, -1, -1])[0], LABELS) == "no label"

    def test_numbers_are_shortened(self) -> None:
        assert tasks.get("regression").describe(rows([1.23456789, -2])[0], ("a", "b")) == (
            "1.235, -2"
        )


class TestGold:
    def test_right_numbers_are_one_or_one_for_each_column(self) -> None:
        values = tasks.get("regression").values(["0.5", " -2 "], 1)
        assert values is not None
        assert values.tolist() == [[0.5], [-2.0]]
        several = tasks.get("regression").values(["1, 2e3"], 2)
        assert several is not None
        assert several.tolist() == [[1.0, 2000.0]]
        assert tasks.get("tensors").values(["1"], 1) is None
        assert tasks.get("single_label").values(["1"], 1) is None

    @pytest.mark.parametrize("name", ["", "good", "1,2", "nan", "inf"])
    def test_what_is_no_number_is_said(self, name: str) -> None:
        with pytest.raises(InputError, match="a number"):
            tasks.get("regression").values([name], 1)

    def test_only_several_labels_may_be_none_at_all(self) -> None:
        with pytest.raises(InputError, match="without a label"):
            tasks.get("single_label").gold(["sport", ""], LABELS)

    def test_gold_labels_are_names_or_indices(self) -> None:
        gold = tasks.get("single_label").gold(["sport", "1", " tech ", "2"], LABELS)
        assert gold is not None
        assert gold.tolist() == [0, 1, 2, 2]

    def test_a_name_goes_before_an_index(self) -> None:
        gold = tasks.get("single_label").gold(["1"], ("1", "2", "3"))
        assert gold is not None
        assert gold.tolist() == [0]

    def test_several_labels_apply_together(self) -> None:
        gold = tasks.get("multi_label").gold(["sport, business", "", "1"], LABELS)
        assert gold is not None
        assert gold.tolist() == [[True, True, False], [False] * 3, [False, True, False]]

    def test_a_comma_in_a_name_is_no_separator(self) -> None:
        gold = tasks.get("multi_label").gold(["identity, hate"], ("hate", "identity, hate"))
        assert gold is not None
        assert gold.tolist() == [[False, True]]

    @pytest.mark.parametrize("name", ["single_label", "multi_label"])
    @pytest.mark.parametrize("gold", ["politics", "3", "-1", "Sport", "²", "1.5"])
    def test_an_unknown_gold_label_is_told_the_known_ones(self, name: str, gold: str) -> None:
        with pytest.raises(InputError, match=r"the model does not know\n.*sport, business, tech"):
            tasks.get(name).gold([gold], LABELS)


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_task_is_found_by_its_name(self, name: str) -> None:
        assert tasks.get(name).name == name

    def test_an_unknown_task_is_told_the_known_ones(self) -> None:
        with pytest.raises(
            ChoiceError,
            match="question_answering, regression, reranking, single_label",
        ):
            tasks.get("poetry")

    @pytest.mark.parametrize(
        ("problem_type", "num_labels", "name"),
        [
            (None, 1, "multi_label"),
            (None, 2, "single_label"),
            ("single_label_classification", 5, "single_label"),
            ("single_label_classification", 1, "multi_label"),
            ("multi_label_classification", 5, "multi_label"),
            ("regression", 1, "regression"),
            ("regression", 3, "regression"),
        ],
    )
    def test_a_config_names_its_task(
        self, problem_type: str | None, num_labels: int, name: str
    ) -> None:
        config = {"problem_type": problem_type, "num_labels": num_labels}
        assert tasks.claiming(config).name == name
        claims = [task for task, kind in tasks.discover().items() if kind.claims(config)]
        assert claims == [name]


@pytest.mark.parametrize(
    ("name", "labels", "column"),
    [
        ("1.0", ("no", "yes"), 1),
        ("1.0", ("2.0", "1.0"), 1),
        ("True", ("no", "yes"), 1),
        ("False", ("no", "yes"), 0),
        ("True", ("true", "false"), 0),
        ("2.0", ("1", "2", "3"), 1),
    ],
)
def test_gold_labels_of_data_frames_and_json(
    name: str, labels: tuple[str, ...], column: int
) -> None:
    gold = tasks.get("single_label").gold([name], labels)
    assert gold is not None
    assert gold.tolist() == [column]


def test_nothing_outside_knows_a_tasks_name() -> None:
    """The server may: which operations a model has is theirs to say."""
    package = Path(tasks.__file__).parents[1]
    options = {"embeddings"}  # what compress may make smaller has the name of a task as well
    names = [f'"{name}"' for name in tasks.names() if name not in options]
    files = [path for path in package.rglob("*.py") if "tasks" not in path.parts[-2:]]
    naming = {
        f"{path.relative_to(package)}:{number}"
        for path in files
        if "serve" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(name in line for name in names) and ">>>" not in line
    }
    assert not naming


def test_a_label_applies_from_its_threshold_on() -> None:
    outputs = Outputs.of_rows([[0.5, 0.5], [-1.0, 3.0], [-0.5, -3.0]])
    labels = ("toxic", "insult")
    asked = {"threshold": {"toxic": 0.3}}
    task, _ = tasks.adjusted(tasks.get("multi_label"), asked, labels)
    assert task.decisions(outputs).tolist() == [[True, True], [False, True], [True, False]]
    assert task.describe(outputs[2], labels) == "toxic"
    cut = np.log(0.3 / 0.7)
    assert task.sureness(outputs) == pytest.approx([0.5, 1.0 + cut, -0.5 - cut])
    same, _ = tasks.adjusted(tasks.get("multi_label"), {"threshold": 0.9}, labels)
    assert same.decisions(outputs).tolist() == [[False, False], [False, True], [False, False]]
    with pytest.raises(ChoiceError, match=r"label 'rude'.*\n.*toxic, insult"):
        tasks.adjusted(task, {"threshold": {"rude": 0.3}}, labels)
    with pytest.raises(ChoiceError, match="between 0 and 1"):
        tasks.adjusted(task, {"threshold": 30}, labels)


def test_agreement_of_labels_and_numbers_is_in_their_own_terms() -> None:
    ours = Outputs.of_rows([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    theirs = Outputs.of_rows([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])
    found = tasks.get("multi_label").agreement(ours, theirs, ["a", "b", "c"], ["x", "y"])
    assert found == {"micro-F1": 0.8, "macro-F1": 0.5}
    numbers, others = Outputs.of_rows([[2.0], [0.0], [4.0]]), Outputs.of_rows([[1.0], [0.5], [5.0]])
    found = tasks.get("regression").agreement(numbers, others, ["a", "b", "c"], ["x"])
    assert found == pytest.approx(
        {
            "mean absolute difference": 2.5 / 3,
            "mean relative difference": 0.375,
            "Spearman": 1.0,
        }
    )


def test_settings_of_the_task_stay_with_the_model(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", problem_type="multi_label_classification")
    asked = {"threshold": {"LABEL_1": 0.25}}
    info = prepare(model, tmp_path / "reference", task_settings=asked).info
    assert tasks.of(info).threshold == (0.5, 0.25, 0.5)  # type: ignore[attr-defined]
    with pytest.raises(ChoiceError, match=r"no setting 'stride'\nIt has: threshold"):
        prepare(model, tmp_path / "other", task_settings={"stride": 8})
