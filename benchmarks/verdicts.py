"""Benchmark of the error rates and the processor time of verdicts: python -m benchmarks.verdicts [--show]

The user agents come from three independent sources:
- `fake-useragent`: user agents of browsers, from the statistics of many sites.
- `device-detector`: the test cases of Matomo's parser, with tens of thousands of user agents of phones, tablets and desktops, and
  a list of crawlers. The benchmark does not use the code of the parser.
- `crawler-user-agents`: the examples of the list from which `shortener.clicks.verdicts.crawlers` is generated. One rule of the
  verdicts uses this list, so these examples only show that the rule matches every entry. The benchmark therefore also
  measures without this rule, to estimate how many of the crawlers that the list does not contain count as people.

Exits with 1 if a target is missed. tests/clicks/verdicts/test_request_rules.py checks the same targets.
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

MAX_BROWSERS_SUSPECTED = 0.5  # the maximum per cent of browsers that are suspected
MAX_PHONES_SUSPECTED = 0.0  # the maximum per cent of phones that are suspected
MAX_CRAWLERS_HUMAN = 2.0  # the maximum per cent of crawlers that count as human
MAX_CACHED_MICROSECONDS = 10.0
CACHED_PASSES = 5  # number of passes; the fastest counts, because other processes slow passes down

# User agents of the HTTP clients of apps on Android and on Apple's systems. Matomo lists them as the browser of the system, but
# no browser sends them.
HTTP_CLIENT = re.compile(r"^(?:Mobo:)?Dalvik/|^2\.1\.0 \(Linux|CFNetwork/|^(?!Mozilla/)[\w.-]+(?:/| v\.)[\d.]+ \([^)]*Android")


@dataclass(frozen=True)
class Sample:
    """User agents of one kind from one source. At most `limit` per cent of them may get the verdict `wrong`."""

    name: str
    agents: frozenset[str]
    wrong: Verdict
    limit: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="list each user agent that got the wrong verdict")
    show = parser.parse_args().show
    measured = list(samples())
    missed = [sample.name for sample in measured if not _report(sample, show)]
    _report_unlisted()
    warm = _report_cost(sorted({agent for sample in measured if sample.wrong is Verdict.SUSPECTED for agent in sample.agents}))
    if warm > MAX_CACHED_MICROSECONDS:
        missed.append("cost per hit")
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nAll targets met.")
    return 1 if missed else 0


def samples() -> Iterator[Sample]:
    listed = frozenset(agent for crawler in CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"])
    yield Sample("crawler-user-agents: its examples", listed, Verdict.HUMAN, MAX_CRAWLERS_HUMAN)

    lines = _installed("fake-useragent", "fake_useragent/data/browsers.jsonl").read_text().splitlines()
    seen = frozenset(json.loads(line)["useragent"] for line in lines)
    yield Sample("fake-useragent: browsers", seen, Verdict.SUSPECTED, MAX_BROWSERS_SUSPECTED)

    folder = _installed("device-detector", "device_detector/tests/fixtures/upstream")
    cases = [case for file in sorted(folder.glob("*.yml")) for case in _cases(file)]
    crawlers = frozenset(case.agent for case in cases if case.client == "bot")
    yield Sample("device-detector: crawlers", crawlers, Verdict.HUMAN, MAX_CRAWLERS_HUMAN)
    phones = {"smartphone", "phablet", "feature phone", "tablet"}
    browsers = frozenset(case.agent for case in cases if case.client == "browser" and case.device in phones)
    desktops = frozenset(case.agent for case in cases if case.client == "browser" and case.device == "desktop")
    clients = frozenset(agent for agent in browsers | desktops if HTTP_CLIENT.search(agent))
    in_apps = frozenset(case.agent for case in cases if case.client == "mobile app" and case.agent.startswith("Mozilla/"))
    mobile = frozenset(agent for agent in in_apps if "Windows NT" not in agent and "ms-office" not in agent)
    yield Sample("device-detector: browsers of phones and tablets", browsers - clients, Verdict.SUSPECTED, MAX_PHONES_SUSPECTED)
    yield Sample("device-detector: browsers in apps of phones", mobile, Verdict.SUSPECTED, MAX_PHONES_SUSPECTED)
    # Internet Explorer up to 10 is suspected on purpose, because nobody uses it to open a link from an SMS.
    yield Sample("device-detector: browsers of desktops, many of them older than 2015", desktops - clients, Verdict.SUSPECTED, 40.0)
    yield Sample("device-detector: HTTP clients of apps", clients, Verdict.HUMAN)


def _installed(package: str, path: str) -> Path:
    return Path(str(distribution(package).locate_file(path)))


@dataclass(frozen=True)
class Case:
    agent: str
    client: str  # the kind of client, for example "browser", "mobile app" or "bot"
    device: str


_AGENT = re.compile(r"^ *user_agent: *(.+)$", re.MULTILINE)
_CLIENT = re.compile(r"^ *client: *\n *type: *(.+)$", re.MULTILINE)
_DEVICE = re.compile(r"^ *device: *\n *type: *(.+)$", re.MULTILINE)
_BOT = re.compile(r"^ *bot: *$", re.MULTILINE)


def _cases(file: Path) -> Iterator[Case]:
    """Yield the test cases of one fixture file. The format of the file is so regular that no YAML parser is necessary."""
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
    """Print the verdicts of the sample. Return whether its target is met."""
    verdicts = {agent: classify(RequestTraits("GET", agent)) for agent in sample.agents}
    wrong = {agent: result for agent, result in verdicts.items() if result.verdict is sample.wrong}
    share = 100 * len(wrong) / len(verdicts)
    target = f"(target: at most {sample.limit} %)" if sample.limit is not None else ""
    print(f"{sample.name}: {len(verdicts)} agents, {len(wrong)} called {sample.wrong.api_name}: {share:.2f} % {target}")
    print(f"    {_by_rule(verdicts.values())}")
    if show:
        for agent, result in sorted(wrong.items()):
            print(f"      {result.rule}: {result.reason}: {agent}")
    return sample.limit is None or share <= sample.limit


def _by_rule(results: Iterable[Classification]) -> str:
    counts = Counter(result.rule for result in results)
    return ", ".join(f"{rule} {counts[rule]}" for _, rule in RULES if counts[rule])


def _report_unlisted() -> None:
    """Print the share of known crawlers that the rules do not recognise without the list of crawlers.

    The share is an estimate of how many crawlers outside of the list count as people."""
    agents = sorted({agent for crawler in CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"]})
    rules = [rule for name, rule in AGENT_RULES if name != "crawler"]
    passed = [agent for agent in agents if not any(rule(parse_agent(agent)) for rule in rules)]
    print(f"crawler-user-agents, without the rule of the list: {len(passed)} called human: {100 * len(passed) / len(agents):.2f} %")


def _report_cost(agents: list[str]) -> float:
    """Print the microseconds of a verdict for a new and for a known user agent. Return the time for a known user agent."""
    agents = agents[:: max(1, len(agents) // (MAX_CACHED_AGENTS // 2))] or ["Mozilla/5.0 (iPhone)"]
    classify_agent.cache_clear()
    cold = microseconds(agents)
    warm = min(microseconds(agents) for _ in range(CACHED_PASSES))
    print(f"\nCost per hit: {cold:.1f} µs for a new user agent")
    print(f"    {warm:.2f} µs for a cached one (target: under {MAX_CACHED_MICROSECONDS} µs)")
    return warm


def microseconds(agents: list[str]) -> float:
    """Return the mean processor time of a verdict in microseconds. It does not contain time in which other processes run."""
    start = time.thread_time()
    for agent in agents:
        classify(RequestTraits("GET", agent))
    return (time.thread_time() - start) / len(agents) * 1e6


if __name__ == "__main__":
    sys.exit(main())
