"""The contract of `job.ports.Store`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from job.ports import Conflict, Store, Stored, Verdict

TIMEOUT = 10.0
MANY = bytes(range(256)) * 4096


class StoreContract:
    """What every store does.

    A subclass has the fixtures `connect`, a new `Store` on the same, at first empty, place, and `broken`, one that
    cannot be used before somebody has mended something.
    """

    @pytest.fixture
    def store(self, connect: Callable[[], Store]) -> Store:
        return connect()

    def test_an_empty_place_is_none(self, store: Store) -> None:
        """Absent is None, and loading does not create anything."""
        assert store.load(TIMEOUT) is None
        assert store.load(TIMEOUT) is None

    def test_a_saved_value_is_loaded_again(self, store: Store, connect: Callable[[], Store]) -> None:
        """Byte for byte, by whoever looks there."""
        store.save(MANY, None, TIMEOUT)

        for reader in (store, connect()):
            stored = reader.load(TIMEOUT)
            assert stored is not None
            assert stored.data == MANY

    def test_a_value_is_replaced_by_the_token_of_a_load(self, store: Store, connect: Callable[[], Store]) -> None:
        """The token of what was loaded names it."""
        store.save(b"one", None, TIMEOUT)
        other = connect()
        other.save(b"two", loaded(other).token, TIMEOUT)

        assert loaded(store).data == b"two"

    def test_a_value_is_replaced_by_the_token_of_a_save(self, store: Store) -> None:
        """A run that saves now and then does not load again."""
        token = store.save(b"one", None, TIMEOUT)
        token = store.save(b"two", token, TIMEOUT)
        store.save(b"three", token, TIMEOUT)

        assert loaded(store).data == b"three"

    def test_a_first_value_must_be_the_first(self, store: Store) -> None:
        """Without a token there must be nothing; else nothing is changed."""
        store.save(b"one", None, TIMEOUT)
        with pytest.raises(Conflict):
            store.save(b"two", None, TIMEOUT)

        assert loaded(store).data == b"one"

    def test_an_old_token_is_a_conflict(self, store: Store, connect: Callable[[], Store]) -> None:
        """Another run has saved meanwhile: nothing is changed, and asking again does not help."""
        old = store.save(b"one", None, TIMEOUT)
        connect().save(b"two", old, TIMEOUT)
        for _ in range(2):
            with pytest.raises(Conflict):
                store.save(b"three", old, TIMEOUT)

        assert loaded(store).data == b"two"

    def test_after_a_conflict_a_new_load_can_be_replaced(self, store: Store, connect: Callable[[], Store]) -> None:
        """Who lost finds out who won, and may go on from there."""
        old = store.save(b"one", None, TIMEOUT)
        connect().save(b"two", old, TIMEOUT)
        store.save(b"three", loaded(store).token, TIMEOUT)

        assert loaded(connect()).data == b"three"

    def test_one_of_many_savers_wins(self, store: Store, connect: Callable[[], Store]) -> None:
        """Eight replace the same value at the same time: one does, and the others find out."""
        token = store.save(b"before", None, TIMEOUT)
        savers = [connect() for _ in range(8)]

        def save(number: int) -> bool:
            try:
                savers[number].save(b"saver %d" % number, token, TIMEOUT)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(len(savers)) as pool:
            won = list(pool.map(save, range(len(savers))))

        assert won.count(True) == 1
        assert loaded(store).data == b"saver %d" % won.index(True)

    def test_an_empty_value_is_not_an_absent_one(self, store: Store) -> None:
        """Zero bytes are a value, though no checkpoint."""
        store.save(b"", None, TIMEOUT)

        assert loaded(store).data == b""
        with pytest.raises(Conflict):
            store.save(b"one", None, TIMEOUT)

    def test_who_looks_sees_what_a_load_would(self, store: Store, connect: Callable[[], Store]) -> None:
        """None where there is no value, and then the value."""
        assert connect().look(TIMEOUT) is None
        store.save(MANY, None, TIMEOUT)

        looked = connect().look(TIMEOUT)
        assert (looked and looked.data) == MANY

    def test_checks_change_nothing(self, store: Store, connect: Callable[[], Store]) -> None:
        """Not before the first value, which nobody has to get ready for, and not after it: its token stays valid."""
        before = list(connect().checks(TIMEOUT))
        assert connect().look(TIMEOUT) is None
        token = store.save(b"one", None, TIMEOUT)
        after = list(connect().checks(TIMEOUT))

        assert [check for check in before + after if check.verdict is Verdict.FAIL] == []
        assert before
        assert loaded(store).data == b"one"
        store.save(b"two", token, TIMEOUT)

    def test_what_is_broken_fails_a_check(self, broken: Store) -> None:
        """It raises nothing, and says what to do."""
        failed = [check for check in broken.checks(TIMEOUT) if check.verdict is Verdict.FAIL]

        assert failed
        assert all(check.found and check.remedy for check in failed)


def loaded(store: Store) -> Stored:
    stored = store.load(TIMEOUT)
    assert stored is not None
    return stored
