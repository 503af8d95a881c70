"""The specification, by numbers that a reader can check by hand."""

import numpy as np
import pytest

from support.ranking import attend, carry, committees, fuse, margin, moves, select
from support.reference import N_SPARE, HeadCache, Rules, SequenceCache, is_prompt, plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"keep": -1}, "keep must not be negative, got -1"),
        ({"capacity": 6, "keep": 2}, "capacity must exceed keep \\+ window \\+ protect, got 6"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"prompt_room": -1}, "prompt_room must not be negative, got -1"),
        ({"votes": 5}, "votes must be in 0..window, got 5"),
        ({"fusion": "mean"}, "fusion must be one of"),
        ({"decay": 1.0}, "decay must be in"),
        ({"policy": "votes"}, "policy must be one of"),
        ({"protect": -2}, "protect must be at least -1, got -2"),
        ({"protect": 4}, "capacity must exceed keep \\+ window \\+ protect, got 8 with 0 \\+ 4 \\+ 4"),
    ],
)
def test_impossible_rules_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rules(**{"capacity": 8, "window": 4} | wrong)


class TestPlan:
    """What a batch does: [(cut before?, n_new)]"""

    rules = Rules(capacity=8, window=2, interval=3, prompt_room=6)

    @staticmethod
    def prompt(n_tokens, n_used, rules, n_ubatch=100):
        return plan(n_tokens, n_used, rules, n_ubatch, is_prompt=True, is_ready=True)

    def step(self, n_tokens, n_used, is_ready=True):
        return plan(n_tokens, n_used, self.rules, 100, is_prompt=False, is_ready=is_ready)

    @pytest.mark.parametrize(("n_used", "cut"), [(0, False), (8, False), (10, False), (11, True), (14, True)])
    def test_a_single_token_cuts_once_the_recent_region_outgrew_the_window_by_interval(self, n_used, cut):
        assert self.step(1, n_used) == [(cut, 1)]

    @pytest.mark.parametrize(("n_used", "cut"), [(11, False), (13, False), (14, True)])
    def test_a_cut_waits_for_a_sequence_that_is_not_ready_while_cells_are_free(self, n_used, cut):
        assert self.step(1, n_used, is_ready=False) == [(cut, 1)]

    def test_a_draft_is_cut_before_it_rather_than_inside_of_it(self):
        assert self.step(4, 10) == [(False, 4)]
        assert self.step(4, 11) == [(True, 4)]
        assert self.step(5, 10) == [(True, 5)]
        assert self.step(5, 10, is_ready=False) == [(True, 5)]
        assert self.step(7, 8) == [(False, 6), (True, 1)]  # nothing to evict before it

    @pytest.mark.parametrize(
        ("n_tokens", "n_logits", "expected"),
        [(1, 0, True), (1, 1, False), (2, 1, True), (2, 2, False), (32, 32, False), (33, 33, True)],
    )
    def test_a_batch_whose_tokens_all_want_logits_is_a_draft_if_it_is_short(self, n_tokens, n_logits, expected):
        assert is_prompt(n_tokens, n_logits) == expected

    def test_a_prompt_that_fits_is_not_cut(self):
        assert self.prompt(14, 0, self.rules) == [(False, 14)]
        assert self.prompt(3, 11, self.rules) == [(False, 3)]

    def test_a_prompt_is_split_by_micro_batches(self):
        assert self.prompt(10, 0, self.rules, n_ubatch=4) == [(False, 4), (False, 4), (False, 2)]

    def test_a_long_prompt_is_cut_only_when_no_cell_is_free(self):
        assert self.prompt(22, 0, self.rules) == [(False, 14), (True, 6), (True, 2)]
        assert self.prompt(2, 14, self.rules) == [(True, 2)]

    def test_interval_is_the_least_prompt_room(self):
        assert self.prompt(12, 0, Rules(capacity=8, window=2, interval=3)) == [(False, 11), (True, 1)]


class TestScoring:
    def test_attend_is_a_softmax_per_query_over_the_given_keys(self):
        queries = np.array([[[1.0], [0.0]]])  # one query head, two voters
        keys = np.log([[1.0], [3.0]]) / 0.5
        np.testing.assert_allclose(attend(queries, keys, scale=0.5), [[[0.25, 0.75], [0.5, 0.5]]])

    def test_attend_survives_huge_logits(self):
        np.testing.assert_allclose(attend(np.ones((1, 1, 1)), np.array([[1e4], [0.0]]), 1.0), [[[1, 0]]])

    def test_softcap_bounds_the_logits(self):
        queries, keys = np.ones((1, 1, 1)), np.array([[1e6], [-1e6]])
        expected = np.array([np.e**2, np.e**-2]) / (np.e**2 + np.e**-2)
        np.testing.assert_allclose(attend(queries, keys, 1.0, softcap=2.0)[0, 0], expected)

    def test_fuse_takes_the_group_maximum_before_it_joins_the_voters(self):
        attention = np.array([[[0.1, 0.9], [0.3, 0.7]], [[0.6, 0.4], [0.2, 0.8]]])  # (group, voter, cell)
        np.testing.assert_allclose(fuse(attention, "sum"), [0.6 + 0.3, 0.9 + 0.8])
        np.testing.assert_allclose(fuse(attention, "max"), [0.6, 0.9])

    def test_a_vote_is_added_to_what_is_left_of_the_sum(self):
        np.testing.assert_allclose(carry(np.array([1.0, 2.0]), np.array([4.0, 0.0]), 0.5), [3, 2])

    def test_each_committee_has_half_of_the_seats(self):
        votes = np.array([9.0, 6.0, 3.0, 2.0, 1.0, 0.0])
        sums = np.array([1.0, 1.0, 2.0, 4.0, 8.0, 10.0])
        np.testing.assert_allclose(committees(votes, sums, n_seats=4), [1.5, 1, 0.5, 0.5, 1, 1.25])

    def test_seats_that_both_committees_would_fill_alike_go_to_those_who_came_nearest(self):
        votes, sums = np.array([8.0, 4.0, 2.0, 3.0, 1.0]), np.array([8.0, 4.0, 3.5, 0.0, 0.0])
        scores = committees(votes, sums, n_seats=4)
        np.testing.assert_allclose(scores, [2, 1, 0.875, 0.75, 0.25])
        np.testing.assert_array_equal(select(scores, 4, 0), [0, 1, 2, 3])

    def test_votes_of_which_most_are_nothing_leave_the_seats_to_the_sums(self):
        scores = committees(np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 3.0, 2.0]), n_seats=3)
        np.testing.assert_array_equal(select(scores, 3, 0), [0, 2, 3])
        assert np.isfinite(scores).all()


class TestSelection:
    def test_the_best_cells_stay_and_the_first_ones_always_do(self):
        scores = np.array([0.0, 0.1, 5.0, 1.0, 4.0])
        assert select(scores, n_distant=3, keep=0).tolist() == [2, 3, 4]
        assert select(scores, n_distant=3, keep=2).tolist() == [0, 1, 2]

    def test_the_best_graduate_takes_the_worst_slot(self):
        scores = np.array([3.0, 1.0, 2.0, 9.0, 8.0, 0.0])  # slots 0..2, graduates 3..5
        assert moves(scores, n_distant=3, keep=0).tolist() == [[3, 1], [4, 2]]

    def test_kept_slots_take_no_part_in_the_competition(self):
        assert moves(np.array([0.0, 2.0, 1.0]), n_distant=2, keep=1).tolist() == []
        assert moves(np.array([0.0, 2.0, 3.0]), n_distant=2, keep=1).tolist() == [[2, 1]]

    def test_a_tie_keeps_the_token_in_the_slot(self):
        assert moves(np.array([1.0, 1.0, 1.0]), n_distant=2, keep=0).tolist() == []
        assert select(np.array([1.0, 1.0, 1.0]), n_distant=2, keep=0).tolist() == [0, 1]

    @pytest.mark.parametrize("seed", range(20))
    def test_moves_give_the_selected_set_also_with_ties(self, seed):
        rng = np.random.default_rng(seed)
        n_distant, keep, n_graduates = 7, seed % 4, 1 + seed % 12
        scores = rng.integers(0, 6, n_distant + n_graduates).astype(float)
        pairs = moves(scores, n_distant, keep)
        slots = np.arange(n_distant)
        slots[pairs[:, 1]] = pairs[:, 0]
        assert sorted(slots) == select(scores, n_distant, keep).tolist()
        assert (pairs[:, 0] >= n_distant).all()
        assert ((pairs[:, 1] >= keep) & (pairs[:, 1] < n_distant)).all()

    def test_margin_is_worst_kept_minus_best_evicted_of_those_that_compete(self):
        scores = np.array([0.0, 5.0, 3.0, 2.5])
        assert margin(scores, kept=np.array([0, 1, 2]), keep=1) == 0.5
        assert margin(scores, kept=np.array([0, 1, 3]), keep=1) == -0.5


def numbered_head(rules: Rules, n_tokens: int) -> HeadCache:
    """A head whose keys are the positions and whose values are their negatives."""
    head = HeadCache(rules, head_size=1)
    numbers = np.arange(n_tokens, dtype=float)[:, None]
    head.append(numbers, -numbers)
    return head


class TestHead:
    rules = Rules(capacity=5, window=2, interval=2)  # three slots

    def test_first_cut_competes_over_all_but_the_window(self):
        head = numbered_head(self.rules, 7)
        cut = head.cut(np.array([0.3, 0.1, 0.2, 0.5, 0.4]))
        assert head.positions.tolist() == [0, 3, 4, 5, 6]
        assert cut.graduates.tolist() == [3, 4]
        assert cut.evicted.tolist() == [1, 2]
        assert cut.chosen.tolist() == cut.kept.tolist() == [0, 3, 4]
        assert cut.worst_chosen == 0.3
        assert cut.margin == cut.kept_margin == pytest.approx(0.1)

    def test_rows_move_with_their_tokens(self):
        head = numbered_head(self.rules, 7)
        head.cut(np.array([0.1, 0.3, 0.2, 0.5, 0.0]))
        assert head.positions.tolist() == [3, 1, 2, 5, 6]
        assert head.keys[:, 0].tolist() == [3, 1, 2, 5, 6]
        assert head.values[:, 0].tolist() == [-3, -1, -2, -5, -6]

    def test_tokens_appended_after_a_cut_go_on_counting(self):
        head = numbered_head(self.rules, 7)
        head.cut(np.array([0.0, 1, 2, 4, 3]))
        head.append(np.ones((2, 1)), np.ones((2, 1)))
        assert head.positions.tolist() == [3, 4, 2, 5, 6, 7, 8]

    @pytest.mark.parametrize(
        ("rules", "weight"),
        [({"decay": 0.5}, 0.5), ({"policy": "h2o", "protect": 0}, 1.0), ({"policy": "h2o", "decay": 0.5}, 0.5)],
    )
    def test_sums_stay_with_their_tokens_and_graduates_start_at_none(self, rules, weight):
        head = numbered_head(Rules(capacity=5, window=2, **rules), 6)
        head.sums[:] = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]
        head.cut(np.array([1.0, 2.0, 3.0, 4.0]))
        head.append(np.zeros((1, 1)), np.zeros((1, 1)))
        assert head.positions.tolist() == [3, 1, 2, 4, 5, 6]
        np.testing.assert_array_equal(head.sums, [4, 2, 3, 0, 0, 0])
        flat = head.score(np.zeros((1, 1, 1)), scale=1.0, softcap=0.0, rng=np.random.default_rng(0))
        vote = 0.25  # a zero query attends to all four older cells alike
        np.testing.assert_allclose(flat, [vote + 4 * weight, vote + 2 * weight, vote + 3 * weight, vote])
        np.testing.assert_allclose(head.sums, [*flat, 0, 0])

    def test_committees_carry_sums_and_leave_the_first_cells_out(self):
        head = numbered_head(Rules(capacity=6, window=1, protect=1, keep=1, policy="committees"), 8)
        head.sums[:] = [0, 5, 1, 0, 0, 0, 0, 0]
        scores = head.score(np.zeros((1, 1, 1)), scale=1.0, softcap=0.0, rng=np.random.default_rng(0))
        vote = 1 / 6
        np.testing.assert_allclose(head.sums, [vote, 5 + vote, 1 + vote, vote, vote, vote, 0, 0])
        # three seats: the thresholds are a vote, as all are alike, and the second of the sums
        np.testing.assert_allclose(scores[1:], [(5 + vote) / (1 + vote), 1, 1, 1, 1])

    def test_a_cut_needs_more_than_capacity(self):
        with pytest.raises(ValueError, match="more than capacity tokens, got 5"):
            numbered_head(self.rules, 5).cut(np.zeros(3))

    def test_another_set_can_be_adopted_in_its_own_order(self):
        head = numbered_head(self.rules, 7)
        cut = head.cut(np.array([0.3, 0.1, 0.2, 0.5, 0.4]), adopt=np.array([4, 1, 0]))
        assert head.positions.tolist() == [4, 1, 0, 5, 6]
        assert head.keys[:, 0].tolist() == [4, 1, 0, 5, 6]
        assert cut.chosen.tolist() == [0, 3, 4]
        assert cut.kept_margin == pytest.approx(0.1 - 0.5)

    @pytest.mark.parametrize(
        ("positions", "message"),
        [([0, 1, 5], "older than the window, got \\[5\\]"), ([0, 1, 1], "3 different"), ([1, 2, 3], "begin with")],
    )
    def test_an_impossible_set_is_not_adopted(self, positions, message):
        head = numbered_head(Rules(capacity=5, window=2, keep=1), 7)
        with pytest.raises(ValueError, match=message):
            head.cut(np.zeros(5), adopt=np.array(positions))


def random_sequence(rules: Rules, n_tokens: int, seed: int = 0) -> SequenceCache:
    """Two layers, two KV heads of two query heads, fed token by token with random vectors."""
    cache = SequenceCache(rules, n_layer=2, n_head=4, n_head_kv=2, head_size=3)
    rng = np.random.default_rng(seed)
    for _ in range(n_tokens):
        for cut_first, _ in cache.plan(1, 1):
            if cut_first:
                cache.cut()
        for layer in range(2):
            keys, values = rng.standard_normal((2, 2, 1, 3))
            cache.append(layer, rng.standard_normal((4, 1, 3)), keys, values)
    return cache


class TestSequence:
    def test_heads_keep_sets_of_their_own_and_share_the_recent_tokens(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3), 41)
        sets = {tuple(sorted(head)) for layer in range(2) for head in cache.retained(layer)}
        assert len(sets) == 4
        n_recent = cache.n_used - cache.rules.n_distant
        for layer in range(2):
            for head in cache.heads[layer]:
                assert head.positions[-n_recent:].tolist() == list(range(41 - n_recent, 41))
                assert len(set(head.positions)) == cache.n_used

    @pytest.mark.parametrize("interval", [1, 3, 10])
    def test_the_cache_never_outgrows_capacity_plus_interval(self, interval):
        for n_tokens in range(60):
            assert random_sequence(Rules(capacity=8, window=2, interval=interval), n_tokens).n_used <= 8 + interval

    def test_the_first_tokens_are_never_evicted(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3, keep=3), 60)
        assert (cache.retained(0)[:, :3] == [0, 1, 2]).all()
        assert (cache.retained(1)[:, :3] == [0, 1, 2]).all()

    def test_counters_count_cuts_and_tokens_per_head(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3), 8 + 3 + 3 + 1)
        assert (cache.n_evictions, cache.n_evicted, cache.n_used) == (2, 6, 9)

    def test_nothing_is_retained_before_the_first_cut(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3), 11)
        assert cache.n_evictions == 0
        assert (cache.retained(0) == -1).all()

    def test_only_the_newest_queries_vote(self):
        keys = np.array([[[20.0, 0], [0, np.log(2)], [0, 0], [9, 9], [9, 9], [9, 9]]])
        queries = np.array([[[9.0, 9], [9, 9], [9, 9], [20, 0], [0, 1], [0, 1]]])
        old, new = np.array([1, 0, 0]), np.array([0.25, 0.5, 0.25])
        for votes, expected in ((1, new), (2, 2 * new), (3, old + 2 * new), (0, old + 2 * new)):
            cache = SequenceCache(Rules(5, window=3, votes=votes), 1, 1, 1, head_size=2, scale=1.0)
            cache.append(0, queries, keys, keys)
            np.testing.assert_allclose(cache.cut()[0][0].scores, expected)

    def test_a_group_votes_for_its_own_kv_head(self):
        cache = SequenceCache(Rules(capacity=3, window=1), n_layer=1, n_head=4, n_head_kv=2, head_size=1, scale=1.0)
        keys = np.array([[[5.0], [-5], [0], [0]]] * 2)
        queries = np.zeros((4, 4, 1))
        queries[:, -1, 0] = [5, 5, -5, -5]  # query heads 0, 1 belong to KV head 0
        cache.append(0, queries, keys, keys)
        first, second = cache.cut()[0]
        assert (first.scores.argmax(), second.scores.argmax()) == (0, 1)

    def test_a_tail_is_taken_back_and_the_rest_is_as_before(self):
        rules = Rules(capacity=8, window=2, interval=3)
        cache, shorter = random_sequence(rules, 38), random_sequence(rules, 36)
        assert cache.n_evictions == shorter.n_evictions
        assert cache.remove_tail(36)
        for layer in range(2):
            np.testing.assert_array_equal(cache.keys(layer), shorter.keys(layer))
            np.testing.assert_array_equal(cache.values(layer), shorter.values(layer))
            np.testing.assert_array_equal(cache.voters(layer), shorter.voters(layer))
        assert (cache.newest_position, cache.is_ready) == (35, True)

    def test_a_tail_that_reaches_behind_the_recent_region_is_refused(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3), 40)
        n_used, complete = cache.n_used, cache.complete_position
        assert not cache.remove_tail(complete)
        assert cache.n_used == n_used
        assert cache.remove_tail(complete + 1)
        assert cache.newest_position == complete

    def test_voters_are_missing_after_more_was_taken_back_than_is_spared(self):
        rules = Rules(capacity=60, window=4, interval=40)
        for n_back, is_ready in ((N_SPARE, True), (N_SPARE + 1, False)):
            cache = random_sequence(rules, 90)
            assert cache.remove_tail(90 - n_back)
            assert cache.is_ready == is_ready

    def test_the_token_behind_a_prompt_is_not_cut_before(self):
        cache = SequenceCache(Rules(capacity=4, window=2, prompt_room=20), 1, 1, 1, head_size=1)
        cache.append(0, *np.ones((3, 1, 5, 1)), is_prompt=True)
        assert not cache.is_ready
        cache.append(0, *np.ones((3, 1, 1, 1)))
        assert cache.is_ready
        assert cache.remove_tail(4)  # the prompt's last token, decoded again, alone
        cache.append(0, *np.ones((3, 1, 1, 1)))
        assert not cache.is_ready

    def test_recency_keeps_the_first_and_the_newest(self):
        cache = random_sequence(Rules(capacity=8, window=2, interval=3, keep=2, policy="recency"), 8 + 3 * 4 + 1)
        assert [sorted(head) for head in cache.retained(0)] == [[0, 1, 14, 15, 16, 17]] * 2

    def test_protected_tokens_are_recent_ones_that_do_not_vote(self):
        cache = random_sequence(Rules(capacity=12, window=2, protect=3, interval=3), 12 + 3 + 1)
        wider = random_sequence(Rules(capacity=12, window=5, votes=2, interval=3), 12 + 3 + 1)
        assert cache.voters(0).shape[1] == 2 < cache.rules.n_recent
        np.testing.assert_array_equal(cache.retained(0), wider.retained(0))

    @pytest.mark.parametrize(("policy", "n_recent"), [("morphkv", 2), ("committees", 4), ("h2o", 8), ("recency", 2)])
    def test_a_policy_protects_as_many_as_it_says(self, policy, n_recent):
        assert Rules(capacity=16, window=2, protect=-1, policy=policy).n_recent == n_recent
        assert Rules(capacity=16, window=9, protect=-1, policy=policy).n_recent == 9
        assert Rules(capacity=16, window=2, keep=10, protect=-1, policy=policy).n_recent == min(n_recent, 5)

    def test_h2o_keeps_what_got_most_in_all(self):
        """The first token gets a vote of nearly 1 once, the third a lesser one at each cut."""
        cache = SequenceCache(Rules(3, window=1, policy="h2o", protect=0), 1, 1, 1, head_size=1, scale=1.0)
        keys = np.log([8.0, 1.0, 4.0, 1.0])
        cache.append(0, np.ones((1, 4, 1)), keys[None, :, None], keys[None, :, None])
        ((first,),) = cache.cut()
        np.testing.assert_allclose(first.scores, np.array([8, 1, 4]) / 13)
        cache.append(0, -2 * np.ones((1, 1, 1)), np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
        ((second,),) = cache.cut()
        now = np.array([1 / 64, 1 / 16, 1]) / (1 / 64 + 1 / 16 + 1)
        np.testing.assert_allclose(second.scores, now + np.array([8 / 13, 4 / 13, 0]))
        assert cache.retained(0).tolist() == [[0, 3]]

    def test_random_keeps_another_set_for_another_seed(self):
        rules = [Rules(capacity=8, window=2, interval=3, policy="random", seed=seed) for seed in (1, 1, 2)]
        first, same, other = (random_sequence(rule, 60).retained(1).tolist() for rule in rules)
        assert first == same
        assert first != other
