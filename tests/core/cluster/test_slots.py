"""How many trials a node takes, and what each may use there."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cluster import fleet, slots
from core.cluster.fleet import Fleet
from core.cluster.slots import Node, on_node, parse_memory
from core.errors import UserError

GIB = 2**30
TWO = 2 * GIB


def node(*cards: float, cpus: float = 16) -> Node:
    return Node("id", "host", cpus, tuple(int(card) for card in cards))


# As torch tells them: a card of "11 GB" has 10.76 GiB, one of "24 GB" 23.65, of "80 GB" 79.15.
def test_a_card_takes_what_fits():
    cards = {
        10.76 * GIB: 5, 11 * GIB: 5, 11e9: 5, 23.65 * GIB: 11, 24 * GIB: 11, 24e9: 11,
        79.15 * GIB: 39, 80 * GIB: 39, 2 * GIB: 0, 139.8 * GIB: 69,
    }  # fmt: skip
    assert {card: on_node(node(card), TWO, 1, use_gpus=True).count for card in cards} == cards
    # Of cards that differ the smallest counts for all.
    assert on_node(node(11 * GIB, 24 * GIB), TWO, 1, use_gpus=True).count == 10


@given(st.integers(1, 200), st.integers(1, 8))
def test_the_shares_of_a_card_never_add_up_to_more_than_it(per_card, cards):
    """Ray counts in 1/10000: seven shares of 1/7, rounded to nearest, would be 1.0003."""
    memory = GIB
    card = per_card * memory + slots.CARD_RESERVE
    found = on_node(node(*[card] * cards), memory, 1, use_gpus=True)
    assert found.count == cards * per_card
    units = round(found.gpu * 10_000)
    assert math.isclose(units, found.gpu * 10_000) and units * per_card <= 10_000
    assert found.cpu * found.count <= 16 + 1e-9


def test_what_all_trials_may_allocate_fits_the_card_with_their_contexts():
    for card in (10.76 * GIB, 23.65 * GIB, 79.15 * GIB):
        found = on_node(node(card), TWO, 1, use_gpus=True)
        assert found.memory is not None and 1.5 * GIB < found.memory <= TWO
        assert found.count * (found.memory + slots.CONTEXT) <= card


def test_whole_cards():
    found = on_node(node(10.76 * GIB, 23.65 * GIB), None, 1, use_gpus=True)
    assert (found.count, found.gpu, found.memory) == (2, 1.0, None)


def test_without_gpus_a_slot_is_cores():
    assert on_node(node(cpus=16), TWO, 1, use_gpus=False).count == 16
    found = on_node(node(cpus=15), TWO, 4, use_gpus=False)
    assert (found.count, found.cpu, found.threads, found.gpu) == (3, 4.0, 4, 0.0)
    assert on_node(node(cpus=16), TWO, 1, use_gpus=True).count == 0  # beside nodes with GPUs


def test_the_sentence_names_nodes_cards_and_slots():
    cluster = [node(*[11 * GIB] * 3), node(*[11 * GIB] * 4), node()]
    found = [on_node(n, TWO, 1, use_gpus=True) for n in cluster]
    assert slots.sentence(found, TWO) == "3 nodes, 7 GPUs: 35 slots of 2 GiB"
    alone = [on_node(node(cpus=2), TWO, 1, use_gpus=False)]
    assert slots.sentence(alone, TWO) == "1 node: 2 slots of 1 core"
    whole = [on_node(node(11 * GIB), None, 1, use_gpus=True)]
    assert slots.sentence(whole, None) == "1 node, 1 GPU: 1 slot of one whole GPU"


def test_a_slot_larger_than_every_card_is_refused(monkeypatch):
    """Cards are as large as the labels of their nodes say."""
    nodes = Fleet(30 * GIB, 1, "30GiB")
    monkeypatch.setattr(nodes, "_ask_new_nodes", lambda: None)
    for label in ("11GB", "24GB"):
        sizes, _ = fleet._cards({"Resources": {"GPU": 1.0}, "Labels": {fleet.LABEL: label}}, [])
        nodes.nodes[label] = node(*sizes)
    with pytest.raises(UserError, match=r"30GiB is more than .* \(22.2 GiB\): choose a smaller"):
        nodes.find()
    mixed = list(nodes.nodes.values())
    slots.check(mixed, 20 * GIB, "20GiB")  # one of them takes it
    slots.check([node()], 24 * GIB, "24GiB")  # no cards: slots are cores


def test_a_slot_that_leaves_nothing_for_tensors_is_refused():
    with pytest.raises(UserError, match=r"--slot-memory 250MiB: .* 300 MiB .* choose a larger"):
        slots.check([node(24 * GIB)], 250 * 2**20, "250MiB")
    least = slots.CONTEXT + 1
    slots.check([node(24 * GIB)], least, "301MiB")
    cap = on_node(node(24 * GIB), least, 1, use_gpus=True).memory
    assert cap is not None and cap > 0


def test_sizes_of_memory():
    sizes = {"2GiB": 2 * GIB, "1500MiB": 1500 * 2**20, "0.5 GB": 5 * 10**8, "none": None}
    assert {text: parse_memory(text) for text in sizes} == sizes
    for text in ("٢GiB", "2 parsecs", "-1GiB", "0", "0GiB", "1e9", "0.1b", "2 bananas", "GiB", ""):
        with pytest.raises(UserError, match=r"--slot-memory.*give a size such as 2GiB"):
            parse_memory(text)


def test_a_node_that_has_just_lost_a_trial_gets_the_next_one_last():
    """Ray takes seconds to find that a node is gone: a trial sent there would be lost again."""
    nodes = Fleet(TWO, 1, "2GiB")
    for name in ("first", "second"):
        nodes.nodes[name] = Node(name, name, 2, (11 * GIB,))
    nodes.suspect("first")
    assert [nodes.take().node for _ in range(5)] == ["second"] * 5
    assert nodes.take() is None  # the other one waits its time out
    for _ in range(5):
        nodes.give("second")
    nodes.suspect("second")  # both are suspect: the one with the older loss is tried
    assert [nodes.take().node for _ in range(5)] == ["first"] * 5


def test_a_slot_smaller_than_the_trials_were_laid_out_for_is_named():
    sizes = (24e9, 2.2 * GIB)  # of 24 GB, eleven processes' own needs come out of the slots
    small, large = (on_node(node(size), TWO, 1, use_gpus=True) for size in sizes)
    assert small.memory is not None and large.memory is not None
    assert slots.too_small([large, small], small.memory) == ""
    told = slots.too_small([large, small], large.memory)
    assert told.startswith("a slot on host has 1.74 GiB") and "1.91 GiB" in told
    nothing = [on_node(node(), TWO, 1, use_gpus=gpus) for gpus in (True, False)]
    assert slots.too_small(nothing, TWO) == ""  # no slot, or no limit


@pytest.mark.parametrize("told, native", [("8.0\\n9.0", True), ("8.6\\n7.5", False), ("", False)])
def test_bfloat16_is_taken_where_every_card_computes_in_it(tmp_path, monkeypatch, told, native):
    """As torch.cuda.is_bf16_supported(including_emulation=False) has it: capability 8 or more."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{told}\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slots.cards_have_bfloat16() == native
