"""The short and the middle size of every fault campaign; ``make faults`` runs the long one."""

import pytest

from faults.__main__ import attempt, campaigns
from faults.campaign import Campaign

NAMED = pytest.mark.parametrize("campaign", campaigns(), ids=lambda campaign: campaign.name)


@NAMED
def test_few_faults_end_as_promised(campaign: Campaign) -> None:
    tally = attempt(campaign, campaign.short, seed=1)
    assert tally.tried >= campaign.short
    assert not tally.wrong


@pytest.mark.slow
@NAMED
def test_more_faults_end_as_promised(campaign: Campaign) -> None:
    tally = attempt(campaign, campaign.middle, seed=2)
    assert tally.tried >= campaign.middle
    assert not tally.wrong
