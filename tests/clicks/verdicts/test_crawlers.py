"""Tests of the compiled list of crawlers. It must match the same user agents as the package `crawler-user-agents`."""

from __future__ import annotations

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler

from shortener.clicks.verdicts.crawlers import NOT_CRAWLERS, CrawlerList, find_crawler

EXAMPLES = [example for crawler in CRAWLER_USER_AGENTS_DATA for example in crawler["instances"]]
PATTERNS = [crawler["pattern"] for crawler in CRAWLER_USER_AGENTS_DATA]


def test_the_compiled_crawler_list_matches_the_same_user_agents_as_the_package() -> None:
    crawlers = CrawlerList(PATTERNS)
    # The example user agents of the package, and variants of them that are shortened or changed. The package matches only some of
    # the variants, so both results are compared.
    agents = [*EXAMPLES, *(agent[1:] for agent in EXAMPLES), *(agent[:-1] for agent in EXAMPLES), *map(str.swapcase, EXAMPLES)]
    for agent in agents[::3]:
        assert bool(crawlers.find(agent)) == is_crawler(agent), agent


@pytest.mark.parametrize(
    ("pattern", "matches", "misses"),
    [
        ("^curl", "curl/8.5.0", "libcurl"),
        (r"[wW]get", "a wget b", "WGET"),
        (r"Ahrefs(Bot|SiteAudit)", "x AhrefsSiteAudit/1", "Ahrefs"),
        (r"(^| )sentry\/", "sentry/9", "insentry/9"),
        ("Service$", "GoogleAssociationService", "Service/2"),
        (r"Netumo|netumo", "netumo", "Netum"),
        (r"Bot\/\d\.\d", "Bot/1.2", "Bot/x.y"),
        (r"AdsBot([^-]|$)", "AdsBot", "AdsBot-Mobile"),
    ],
)
def test_each_kind_of_crawler_pattern_matches_the_same_user_agents_after_compilation(
    pattern: str, matches: str, misses: str
) -> None:
    crawlers = CrawlerList([pattern])
    assert (bool(crawlers.find(matches)), bool(crawlers.find(misses))) == (True, False)


def test_a_word_of_the_crawler_list_is_found_behind_a_text_that_only_begins_like_a_word() -> None:
    crawlers = CrawlerList(["AlphaBot-Images", "AlphaBeta crawler", "Gamma"])
    assert crawlers.find("AlphaBot-I, AlphaBot-Images/1.0") == "AlphaBot-Images"
    assert crawlers.find("AlphaBot-Im AlphaBeta Gamm") is None


def test_a_list_without_patterns_finds_no_crawler() -> None:
    assert CrawlerList([]).find("Mozilla/5.0") is None


def test_find_crawler_returns_the_part_of_the_user_agent_that_matches() -> None:
    assert find_crawler("python-requests/2.32.3") == "python-requests"
    assert find_crawler("curl/8.5.0") == "curl"
    assert find_crawler("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0") is None


def test_every_excluded_crawler_pattern_exists_in_the_crawler_list_package() -> None:
    assert set(PATTERNS) >= NOT_CRAWLERS
