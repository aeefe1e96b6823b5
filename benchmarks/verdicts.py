"""How true the verdicts are, and what one costs: python benchmarks/verdicts.py [--show]

Measured on agents that nobody here wrote:
- `fake-useragent`: agents of browsers as seen by many sites' statistics.
- `device-detector`: the test cases of Matomo's parser, tens of thousands of agents of phones, tablets and desktops, and its own
  list of crawlers. (Its code is not used.)
- `crawler-user-agents`: the examples of the list that `shortener.clicks.verdicts.crawlers` is made from. It knows itself, so this
  says only that nothing was lost on the way; how
  many crawlers pass as people is told by the other list, and how many would pass that no list
  knows is told by these examples when the other rules judge them alone.

Exits with 1 if a target is missed. tests/clicks/verdicts/test_request_rules.py holds the shares to their targets too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from shortener.clicks.verdicts.request_rules import (
    AGENT_RULES,
    MAX_CACHED_AGENTS,
    RULES,
    Classification,
    RequestTraits,
    classify,
    classify_agent,
    parse_agent,
)
from shortener.model import Verdict

MOST_BROWSERS_SUSPECTED = 0.5  # percent
MOST_CRAWLERS_HUMAN = 2.0  # percent
MOST_MICROSECONDS_WARM = 10.0

# The HTTP clients of apps on Android and on Apple's systems. Matomo files them under the system's browser, but no browser sends
# them, and nobody taps a link with them.
HTTP_CLIENT = re.compile(r"^Dalvik/|CFNetwork/")


@dataclass(frozen=True)
class Sample:
    """Agents of one kind from one source, and what they should be: the share of `wrong` verdicts may be `most` percent at most."""

    name: str
    agents: frozenset[str]
    wrong: Verdict
    most: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="list each agent that was judged wrongly")
    show = parser.parse_args().show
    samples = list(samples_of_strangers())
    missed = [sample.name for sample in samples if not _report(sample, show)]
    _report_unlisted()
    warm = _report_cost(sorted({agent for sample in samples if sample.wrong is Verdict.SUSPECTED for agent in sample.agents}))
    if warm > MOST_MICROSECONDS_WARM:
        missed.append("cost per hit")
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nAll targets met.")
    return 1 if missed else 0


def samples_of_strangers() -> Iterator[Sample]:
    listed = frozenset(agent for crawler in CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"])
    yield Sample("crawler-user-agents: its examples", listed, Verdict.HUMAN, MOST_CRAWLERS_HUMAN)

    lines = _installed("fake-useragent", "fake_useragent/data/browsers.jsonl").read_text().splitlines()
    seen = frozenset(json.loads(line)["useragent"] for line in lines)
    yield Sample("fake-useragent: browsers", seen, Verdict.SUSPECTED, MOST_BROWSERS_SUSPECTED)

    folder = _installed("device-detector", "device_detector/tests/fixtures/upstream")
    cases = [case for file in sorted(folder.glob("*.yml")) for case in _cases(file)]
    crawlers = frozenset(case.agent for case in cases if case.client == "bot")
    yield Sample("device-detector: crawlers", crawlers, Verdict.HUMAN, MOST_CRAWLERS_HUMAN)
    people = {"smartphone", "phablet", "feature phone", "tablet", "desktop"}
    browsers = frozenset(case.agent for case in cases if case.client == "browser" and case.device in people)
    clients = frozenset(agent for agent in browsers if HTTP_CLIENT.search(agent))
    in_apps = frozenset(case.agent for case in cases if case.client == "mobile app" and case.agent.startswith("Mozilla/"))
    yield Sample("device-detector: browsers", browsers - clients, Verdict.SUSPECTED, MOST_BROWSERS_SUSPECTED)
    yield Sample("device-detector: browsers in apps", in_apps, Verdict.SUSPECTED, MOST_BROWSERS_SUSPECTED)
    yield Sample("device-detector: HTTP clients of apps", clients, Verdict.HUMAN)


def _installed(package: str, path: str) -> Path:
    return Path(str(distribution(package).locate_file(path)))


@dataclass(frozen=True)
class Case:
    agent: str
    client: str  # "browser", "mobile app", "bot" ...
    device: str


_AGENT = re.compile(r"^ *user_agent: *(.+)$", re.MULTILINE)
_CLIENT = re.compile(r"^ *client: *\n *type: *(.+)$", re.MULTILINE)
_DEVICE = re.compile(r"^ *device: *\n *type: *(.+)$", re.MULTILINE)
_BOT = re.compile(r"^ *bot: *$", re.MULTILINE)


def _cases(file: Path) -> Iterator[Case]:
    """The cases of one fixture. They are so regular that they need no YAML parser; the few over several lines are passed by."""
    for text in file.read_text().split("\n-\n"):
        agent, client, device = (pattern.search(text) for pattern in (_AGENT, _CLIENT, _DEVICE))
        if agent is None or agent[1] in ("|", ">"):
            continue
        kind = "bot" if _BOT.search(text) else client[1] if client else ""
        yield Case(_unquoted(agent[1]), kind, device[1] if device else "")


def _unquoted(scalar: str) -> str:
    if scalar.startswith("'"):
        return scalar.strip("'").replace("''", "'")
    return scalar.strip('"').replace('\\"', '"') if scalar.startswith('"') else scalar


def _report(sample: Sample, show: bool) -> bool:
    """Print what the sample was called; whether its target is met."""
    judged = {agent: classify(RequestTraits("GET", agent)) for agent in sample.agents}
    wrong = {agent: judgement for agent, judgement in judged.items() if judgement.verdict is sample.wrong}
    share = 100 * len(wrong) / len(judged)
    target = f"(target: under {sample.most} %)" if sample.most is not None else ""
    print(f"{sample.name}: {len(judged)} agents, {len(wrong)} called {sample.wrong.api_name}: {share:.2f} % {target}")
    print(f"    {_by_rule(judged.values())}")
    if show:
        for agent, judgement in sorted(wrong.items()):
            print(f"      {judgement.rule}: {judgement.reason}: {agent}")
    return sample.most is None or share < sample.most


def _by_rule(judgements: Iterable[Classification]) -> str:
    counts = Counter(judgement.rule for judgement in judgements)
    return ", ".join(f"{rule} {counts[rule]}" for _, rule in RULES if counts[rule])


def _report_unlisted() -> None:
    """Print how many crawlers pass that only the list knows: as many as pass of those that it does not know."""
    agents = sorted({agent for crawler in CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"]})
    rules = [rule for name, rule in AGENT_RULES if name != "crawler"]
    passed = [agent for agent in agents if not any(rule(parse_agent(agent)) for rule in rules)]
    print(f"crawler-user-agents, judged without the list: {len(passed)} called human: {100 * len(passed) / len(agents):.2f} %")


def _report_cost(agents: list[str]) -> float:
    """Print microseconds per hit, with the agent's first and later hits apart; the latter is returned."""
    agents = agents[:: max(1, len(agents) // (MAX_CACHED_AGENTS // 2))] or ["Mozilla/5.0 (iPhone)"]
    classify_agent.cache_clear()
    cold, warm = (_microseconds(agents) for _ in range(2))
    print(f"\nCost per hit: {cold:.1f} µs for an agent not seen before")
    print(f"    {warm:.2f} µs for one that was (target: under {MOST_MICROSECONDS_WARM} µs)")
    return warm


def _microseconds(agents: list[str]) -> float:
    began = time.perf_counter()
    for agent in agents:
        classify(RequestTraits("GET", agent))
    return (time.perf_counter() - began) / len(agents) * 1e6


if __name__ == "__main__":
    sys.exit(main())
