"""Laws of what an outcome bills: unknown is never zero, a reported zero stays zero, not served is not billed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.usage import AtLeast, Basis, Exact, NotServed, Usage, billed

ESTIMATE = Usage(input=120, output=40)
SEEN = Usage(input=100, cache_read=50, output=7, reasoning=3)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        # what the provider reports is the bill, zeros included
        (Exact(SEEN), (SEEN, Basis.PROVIDER)),
        (Exact(Usage()), (Usage(), Basis.PROVIDER)),
        # what was not served costs nothing
        (NotServed(), None),
        # a cut answer: what was seen of it, and the input at least as estimated when it was not told
        (AtLeast(SEEN, Basis.COUNTED), (SEEN, Basis.COUNTED)),
        (AtLeast(Usage(output=7), Basis.COUNTED), (Usage(input=120, output=7), Basis.COUNTED)),
        (AtLeast(Usage(cache_read=9, output=7), Basis.COUNTED), (Usage(cache_read=9, output=7), Basis.COUNTED)),
        # not even the output could be seen: the estimate, never less than what was
        (AtLeast(Usage(), Basis.ESTIMATED), (Usage(input=120, output=40), Basis.ESTIMATED)),
        (AtLeast(Usage(input=5, output=90), Basis.ESTIMATED), (Usage(input=5, output=90), Basis.ESTIMATED)),
    ],
)
def test_an_outcome_bills(outcome: Exact | AtLeast | NotServed, expected: tuple[Usage, Basis] | None) -> None:
    assert billed(outcome, ESTIMATE) == expected


counts = st.integers(0, 1000)


@given(
    st.builds(Usage, input=counts, output=counts, cache_read=counts),
    st.builds(Usage, input=counts, output=counts),
    st.sampled_from([Basis.COUNTED, Basis.ESTIMATED]),
)
def test_a_cut_answer_is_billed_more_than_nothing_and_all_that_was_seen(
    seen: Usage, estimate: Usage, basis: Basis
) -> None:
    bill = billed(AtLeast(seen, basis), estimate)
    assert bill is not None
    assert bill[0].total > 0
    assert bill[0].output >= seen.output
    assert bill[0].input_total >= seen.input_total
