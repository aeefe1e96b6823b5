"""Tests of the request rules: which requests are from people, which are suspected, and which are ignored."""

from __future__ import annotations

import functools

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.verdicts import MAX_CRAWLERS_HUMAN, Sample, samples
from shortener.clicks.verdicts.request_rules import MAX_AGENT_LENGTH, PREVIEWS, RULES, RequestTraits, classify, classify_agent
from shortener.model import Verdict
from tests.one_test import in_one_test

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/26.6.1 Mobile/15E148 Safari/604.1"
)


def android(system: str, more: str = "") -> str:
    return (
        f"Mozilla/5.0 (Linux; Android {system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36{more}"
    )


def rule(agent: str) -> str:
    return classify(RequestTraits("GET", agent)).rule


def test_a_plain_get_request_of_a_browser_is_human() -> None:
    classification = classify(RequestTraits("GET", IPHONE))
    assert (classification.verdict, classification.rule) == (Verdict.HUMAN, "browser")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST"])
def test_requests_with_another_method_than_get_are_ignored_with_any_user_agent(method: str) -> None:
    # Even the user agent of an ordinary iPhone does not make a HEAD request human: the app X sends such requests.
    classification = classify(RequestTraits(method, IPHONE))
    assert (classification.verdict, classification.rule) == (Verdict.IGNORED, "method")
    assert method in classification.reason


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_purpose": "prefetch"},
        {"sec_purpose": "prefetch;prerender"},
        {"sec_purpose": "prefetch;anonymous-client-ip"},
        {"purpose": "prefetch"},
        {"purpose": "Preview"},
        {"x_purpose": "preview"},
        {"x_moz": "prefetch"},
    ],
)
def test_a_prefetch_request_is_ignored(headers: dict[str, str]) -> None:
    classification = classify(RequestTraits("GET", IPHONE, **headers))
    assert (classification.verdict, classification.rule) == (Verdict.IGNORED, "prefetch")


def test_a_request_with_another_value_than_prefetch_in_a_purpose_header_is_not_ignored() -> None:
    assert classify(RequestTraits("GET", IPHONE, purpose="navigate", x_purpose="")).verdict is Verdict.HUMAN


@pytest.mark.parametrize("agent", ["", " ", "\t "])
def test_a_request_with_an_empty_user_agent_is_suspected(agent: str) -> None:
    classification = classify(RequestTraits("GET", agent))
    assert (classification.verdict, classification.rule) == (Verdict.SUSPECTED, "empty_agent")


@in_one_test
@pytest.mark.parametrize(
    ("app", "agent"),
    [
        (
            "iMessage",
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 (KHTML, like Gecko) Version/9.0.1 Safari/601.2.4 "
            "facebookexternalhit/1.1 Facebot Twitterbot/1.0",
        ),
        (
            "Google Messages",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/56.0.2924.87 Safari/537.36 "
            "Google-PageRenderer Google (+https://developers.google.com/+/web/snippet/)",
        ),
        ("Google Messages", "GoogleMessages"),
        ("WhatsApp or Signal", "WhatsApp/2.23.20.0 A"),
        ("WhatsApp or Signal", "WhatsApp/2"),
        ("WhatsApp or Signal", "WhatsApp"),
        ("Telegram", "TelegramBot (like TwitterBot)"),
        ("Viber", "Viber/12.8.0.1 CFNetwork/1121.2.2 Darwin/19.3.0"),
        ("KakaoTalk", "facebookexternalhit/1.1; kakaotalk-scrap/1.0; +https://devtalk.kakao.com/t/scrap/33984"),
        ("LINE", "facebookexternalhit/1.1;line-poker/1.0"),
        ("Facebook", "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)"),
        ("X", "Twitterbot/1.0"),
        ("Slack", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"),
        ("Slack", "Slack-ImgProxy (+https://api.slack.com/robots)"),
        ("Discord", "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)"),
        ("Skype or Teams", "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5"),
        ("LinkedIn", "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)"),
        ("Snapchat", "Mozilla/5.0 (X11; Linux x86_64) Snap URL Preview Service; bot; snapchat; https://developers.snap.com/robots"),
        ("VK", "Mozilla/5.0 (compatible; vkShare; +http://vk.com/dev/Share)"),
        ("Matrix", "Synapse (bot; +https://github.com/matrix-org/synapse)"),
    ],
)
def test_a_link_preview_of_an_app_is_suspected_and_the_reason_contains_the_name_of_the_app(app: str, agent: str) -> None:
    classification = classify(RequestTraits("GET", agent))
    assert (classification.verdict, classification.rule) == (Verdict.SUSPECTED, "link_preview")
    assert classification.reason == f"link preview of {app}"


def test_the_names_of_the_apps_that_fetch_link_previews_are_unique() -> None:
    names = [name for name, _ in PREVIEWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "agent",
    [
        "curl/8.5.0",
        "Wget/1.21.4",
        "python-requests/2.32.3",
        "Go-http-client/2.0",
        "okhttp/4.12.0",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/142.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/114.0.5735.179 "
        "Mobile Safari/537.36 (compatible; Google-Safety; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (Linux; Android 8.0; Pixel 2 Build/OPD3.170816.012; Storebot-Google/1.0) AppleWebKit/537.36 "
        "(KHTML, like Gecko) Chrome/81.0.4044.138 Mobile Safari/537.36",
    ],
)
def test_a_hit_by_a_crawler_or_an_http_library_of_the_crawler_list_is_suspected(agent: str) -> None:
    classification = classify(RequestTraits("GET", agent))
    assert (classification.verdict, classification.rule) == (Verdict.SUSPECTED, "crawler")


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (compatible; Unheard-Of/1.0)",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko; Unheard-Of/1.0) Chrome/142.0.0.0 Safari/537.36",
        android("10; K", " (+https://scanner.example/)"),
        android("10; K", " security@scanner.example"),
        android("10; K", " UnheardOfBot/1.0"),
        android("10; K; UnheardOfCrawler"),
        android("10; http://scanner.example"),
        android("10; K", " (via images.unheard-of.com ImageProxy)"),
        android("10; K", " Looked at by unheard-of.net"),
        android("10; K", " UnheardOfHttpAgent"),
        "Mozilla/5.0 (X11; U; Linux i686; en-US; rv:1.9.1.3; unheard-of-agent) Gecko/20090824 Firefox/3.5.3",
        "Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15 LinkChecker",
    ],
)
def test_an_unlisted_program_is_suspected_if_its_user_agent_contains_the_name_of_a_program(agent: str) -> None:
    assert rule(agent) == "program"


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        # These user agents have a word before the complete user agent of a desktop browser or of a phone.
        "Test: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        "Google Chrome - Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        "My Tool (x64): Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        "Anonymous, " + android("11; CPH2211"),
        "unheard-of: " + android("11; CPH2211"),
        "Unheard " + android("11; CPH2211"),
        "Unheard/6.7.5, " + IPHONE,
        "iphone|" + IPHONE,
        # In these user agents, the name of a tool is at the position of the phone model.
        android("4.0.2; en-us; Catchpoint"),
        android("4.1.2; cs-cz; Unheard screenshot-generator Build/Q3"),
        # These user agents contain an attack, such as SQL injection, on programs that process them.
        "<style>" + android("9; K"),
        android("10; K", "'+(select load_file('x'))+'"),
        # These user agents contain the name of a program inside or behind the user agent of a browser.
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36 XyzClassifier/1.0",
        "Mozilla/4.0 (compatible; MSIE 5.5; Windows NT 5.0) Fetch API Request",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/534.16 (KHTML, like Gecko, Google Keyword Suggestion) Chrome/10.0",
    ],
)
def test_a_program_that_adds_text_to_the_user_agent_of_a_browser_is_suspected(agent: str) -> None:
    assert rule(agent) == "program"


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; SV1; FunWebProducts; .NET CLR 1.1.4322; PeoplePal 6.2)",
        "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 6.1; Trident/4.0; QQDownload 663; SLCC2)",
        "Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Trident/5.0; WAC-OFU)",
        "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; WOW64; Trident/6.0) MapperCmd/5.24.780.0",
    ],
)
def test_a_desktop_user_agent_of_internet_explorer_up_to_10_with_added_text_is_suspected(agent: str) -> None:
    assert rule(agent) == "old_desktop"


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        "LG-D802 Mozilla/5.0 (Linux; Android 5.0.2; LG-D802 Build/LRX22G) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
        "Chrome/34.0.1847.118 Mobile Safari/537.36",
        "MQQBrowser/44 " + IPHONE,
        "Kik/9.10.0.5037 (Android 6.0.1) " + android("6.0.1; SM-G920F Build/MMB29K; wv"),
        "HTC_TyTN_II Mozilla/4.0 (compatible; MSIE 4.01; Windows CE; PPC)/8.2.0.116/31/351",
        "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 6.2; Trident/3.1; XBLWP7; ZuneWP7; Nokia 920)",
        "Mozilla/5.0 (Linux; U; Android 2.3.4; xx; LG-P698 Build/alex@hawk-droid.rev3) AppleWebKit/533.1 (KHTML, like Gecko) "
        "Version/4.0 Mobile Safari/533.1",
        android("2.3.6; GT-S5830 - Forum: http://rom.example Build/GRWK74"),
        "Karbonn K180/WAP Browser",
        "HAIER-N60",
        "PHILIPS-Fisio311/2.1 UP/4.1.19m",
        "LGETU550",
        "SCH-S239/ POLARIS/6.15 (GUI; compatible; UP.Browser)",
        "Mozilla/5.0 (H11T; like Gecko; OpenBrowser) NetFront/3.4",
        "Mozilla/5.0 (MeeGo; NokiaN9)",
    ],
)
def test_user_agents_of_old_phones_and_of_phones_with_a_model_before_mozilla_are_human(agent: str) -> None:
    assert rule(agent) == "browser"


def test_the_reason_for_a_suspected_hit_contains_no_email_address_from_the_user_agent() -> None:
    assert "jane" not in classify(RequestTraits("GET", "Mozilla/5.0 (jane@mail.example)")).reason


@pytest.mark.parametrize(
    "agent",
    [
        "Dalvik/2.1.0 (Linux; U; Android 14; SM-S918B Build/UP1A.231005.007)",
        "MyApp/17 CFNetwork/1494.0.7 Darwin/23.4.0",
        "com.apple.WebKit.Networking/8613.3.9.0.16 CFNetwork/1335.0.3 Darwin/21.6.0",
        "Mozilla/5.0",
        "Mozilla/5.0 (check)",
        "x",
    ],
)
def test_a_user_agent_without_the_name_of_a_browser_is_suspected(agent: str) -> None:
    assert rule(agent) in ("no_browser", "crawler")


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        # The names of these phones look like the names of crawlers.
        android("10; CUBOT J9"),
        android("8.1.0; CUBOT_POWER"),
        android(
            "6.0; CUBOT NOTE S Build/MRA58K; wv", " Instagram 12.0.0.7.91 Android (23/6.0; 320dpi; 720x1280; CUBOT; NOTE S; mt6735)"
        ),
        android("7.0; M bot 60 Build/NRD90M"),
        android("7.0; ID bot 53+ Build/NRD90M"),
        android("4.4.2; GLX Spider1S Build/KOT49H"),
        android("13; Spider 8"),
        android("4.4.2; ViewSonic V500 Build/KVT49L"),
        android("8.0.0; Expanse"),
        android("8.1.0; Fever_Plus_J"),
        "Mozilla/5.0 (Linux; U; Android 4.3; en-us; HTC_Butterfly Build/JSS15J) AppleWebKit/534.30 (KHTML, like Gecko) "
        "Version/4.0 Mobile Safari/534.30",
        # The list of crawlers contains this build of Android, although many phones use it.
        android("15; CPH2581 Build/AP3A.240617.008"),
        # These are user agents of browsers inside apps.
        android(
            "14; Pixel 7 Build/UQ1A.240205.002; wv",
            " Instagram 320.0.0.42.101 Android (34/14; 420dpi; 1080x2209; Google/google; Pixel 7)",
        ),
        android("16; Pixel 10 Pro XL Build/CP1A.260305.018; wv", " MetaIAB Facebook"),
        android("12; SM-G991B Build/SP1A.210812.016; wv", " [FB_IAB/FB4A;FBAV/407.0.0.30.97;]"),
        IPHONE.removesuffix(" Version/26.6.1 Mobile/15E148 Safari/604.1")
        + " Mobile/15E148 [FBAN/FBIOS;FBAV/239.0.0.52.149;FBDV/iPhone12,3;FBCR/Vodafone.de;FBLC/de_DE]",
        android("16; SM-F966N; BP2A.250605.031.A3; wv", " Viber/27.4.0.0"),
        android("13; SM-A536B; wv", " WhatsApp/2.24.1.78"),
        android("13; SM-A536B; wv", " Line/13.21.0/IAB"),
        android("13; SM-N986N; wv", ";KAKAOTALK 2410460"),
        android("13; V2164A; wv", " XWEB/1160065 MMWEBSDK/20231202 MicroMessenger/8.0.47.2560(0x28002F51) WeChat/arm64"),
        android("13; SM-A536B; wv", " musical_ly_2023304030 BytedanceWebview/d8a21c6"),
        android("13; SM-A536B", " Telegram-Android/11.3.3 (Samsung SM-A536B; Android 13; SDK 33; HIGH)"),
        android("13; 2201116SI Build/TKQ1.221114.001; wv", " CamScanner/4.5.0.2305051722"),
        android("13; SM-A536B; wv", " Unheard-Of.com/132.0"),
        android("13; SM-A536B; wv", " com.unheard.app/17 [FBAN/FB4A;FBCR/mobile.com]"),
        "User-Agent: " + android("13; SM-A536B"),
        android("13; I2208; wv", " csh-store-checkout d2c-back-supported"),
        # These are user agents of less common browsers.
        android("10; K", " (Ecosia android@143.0.0.0)"),
        android("7.0; SM-G930F", " SogouMSE,SogouMobileBrowser/5.23.53"),
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/317.0.634488990 "
        "Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Mobile; Nokia_2780_Flip; rv:84.0) Gecko/84.0 Firefox/84.0 KAIOS/3.1",
        "Opera/9.80 (Android; Opera Mini/36.2.2254/191.303; U; en) Presto/2.12.423 Version/12.16",
        "UCWEB/2.0 (Java; U; MIDP-2.0; en-US; Nokia501) U2/1.0.0 UCBrowser/9.5.0.449 U2/1.0.0 Mobile",
        "Nokia6280/2.0 (03.60) Profile/MIDP-2.0 Configuration/CLDC-1.1",
        "SAMSUNG-SGH-E330C",
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
    ],
)
def test_requests_of_people_with_unusual_user_agents_are_human(agent: str) -> None:
    classification = classify(RequestTraits("GET", agent))
    assert classification.verdict is Verdict.HUMAN, classification


def test_a_crawler_is_suspected_even_if_its_user_agent_also_contains_a_phone_model() -> None:
    assert rule(android("10; CUBOT J9", " (compatible; Googlebot/2.1; +http://www.google.com/bot.html)")) == "crawler"


def test_of_the_user_agents_in_the_crawler_list_only_browsers_inside_apps_are_human() -> None:
    examples = [example for crawler in CRAWLER_USER_AGENTS_DATA for example in crawler["instances"]]
    people = [agent for agent in examples if classify(RequestTraits("GET", agent)).verdict is Verdict.HUMAN]
    # the patterns that match these user agents are in NOT_CRAWLERS
    assert all("Instagram" in agent or "MetaIAB" in agent for agent in people)


#: The lists that every run of the tests examines. LONG_LIST is not among them, because its classification takes seconds.
SHORT_LISTS = (
    "crawler-user-agents: its examples",
    "fake-useragent: browsers",
    "device-detector: crawlers",
    "device-detector: browsers in apps of phones",
    "device-detector: browsers of desktops, many of them older than 2015",
    "device-detector: HTTP clients of apps",
)
LONG_LIST = "device-detector: browsers of phones and tablets"


@functools.cache
def samples_by_name() -> dict[str, Sample]:
    """Return all lists of user agents by name. Reading them takes most of a second, so the tests do not read them while pytest
    collects tests."""
    return {sample.name: sample for sample in samples()}


def test_the_share_of_wrong_verdicts_is_examined_on_every_public_user_agent_list() -> None:
    assert {*SHORT_LISTS, LONG_LIST} == samples_by_name().keys()


@pytest.mark.parametrize("name", [*SHORT_LISTS, pytest.param(LONG_LIST, marks=pytest.mark.slow)])
def test_the_share_of_wrong_verdicts_on_public_user_agent_lists_is_within_its_limit(name: str) -> None:
    sample = samples_by_name()[name]
    wrong = sum(classify(RequestTraits("GET", agent)).verdict is sample.wrong for agent in sample.agents)
    assert len(sample.agents) > 250
    assert 100 * wrong / len(sample.agents) <= (MAX_CRAWLERS_HUMAN if sample.limit is None else sample.limit)


@given(
    st.builds(
        RequestTraits,
        st.sampled_from(["GET", "HEAD", "OPTIONS"]),
        st.text(st.characters(max_codepoint=255))
        | st.sampled_from([IPHONE, android("(" * 90), android("10;" * 80), "Android " * 64]),
        st.text(),
        st.text(),
    )
)
def test_each_request_gets_a_verdict_and_the_name_of_a_rule(request: RequestTraits) -> None:
    classification = classify(request)
    assert (classification.verdict, classification.rule) in RULES
    assert classification.reason
    assert classify(request) == classification


def test_the_request_rules_have_a_fixed_order() -> None:
    names = [name for _, name in RULES]
    assert names == [
        "method",
        "prefetch",
        "empty_agent",
        "link_preview",
        "crawler",
        "program",
        "no_browser",
        "old_desktop",
        "browser",
    ]


def test_the_verdict_on_a_known_user_agent_is_read_from_the_cache() -> None:
    agent = android("10; K", " not seen before")
    classify(RequestTraits("GET", agent))
    before = classify_agent.cache_info()
    assert classify(RequestTraits("GET", agent)) is classify(RequestTraits("GET", agent))
    after = classify_agent.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 0)


def test_the_cache_of_user_agents_has_a_maximum_size() -> None:
    assert classify_agent.cache_info().maxsize is not None
    before = classify_agent.cache_info().misses
    classify(RequestTraits("GET", android("10; K").ljust(MAX_AGENT_LENGTH, "x") + "y" * 100_000))
    classify(RequestTraits("GET", android("10; K").ljust(MAX_AGENT_LENGTH, "x") + "z" * 100_000))
    assert classify_agent.cache_info().misses == before + 1


LINUX, WINDOWS = "X11; Ubuntu; Linux i686", "Windows NT 6.1; WOW64"
KHTML = "AppleWebKit/537.36 (KHTML, like Gecko)"


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        # Samsung Messages fetches link previews with this user agent
        "Mozilla/5.0 (X11; Ubuntu; Linux i686; rv:24.0) Gecko/20100101 Firefox/24.0",
        f"Mozilla/5.0 ({WINDOWS}; rv:51.0) Gecko/20100101 Firefox/51.0",
        f"Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/41.0.2272.101 Safari/537.36",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_8_5) AppleWebKit/536.30.1 (KHTML, like Gecko) Version/6.0.5 Safari/536.30.1",
        "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; SV1)",
        "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1)",
        "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 5.1; Trident/4.0; .NET CLR 2.0.50727)",
        "Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; WOW64; Trident/5.0)",
        "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Win64; x64; Trident/6.0)",
        f"Mozilla/5.0 ({WINDOWS}; Trident/7.0; rv:11.0) like Gecko",
        "Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; .NET4.0C; .NET4.0E; rv:11.0) like Gecko",
        "Opera/9.80 (Windows NT 6.1; WOW64) Presto/2.12.388 Version/12.16",
        "Opera/9.80 (X11; Linux x86_64; U; en) Presto/2.12.388 Version/12.16",
        "Opera/9.80 (Macintosh; Intel Mac OS X 10.8.2; U; de-DE) Presto/2.10.289 Version/12.02",
        *[
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {KHTML} Chrome/{chrome}.0.2486.0 Safari/537.36 Edge/{edge}"
            for chrome, edge in ((42, "12.246"), (51, "14.14393"), (70, "18.19582"))
        ],
    ],
)
def test_a_desktop_browser_that_is_too_old_for_a_person_is_suspected(agent: str) -> None:
    assert rule(agent) == "old_desktop"


@in_one_test
@pytest.mark.parametrize(
    "agent",
    [
        f"Mozilla/5.0 ({WINDOWS}; rv:52.0) Gecko/20100101 Firefox/52.0",
        f"Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/109.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {KHTML} Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {KHTML} Chrome/120.0.0.0 Safari/537.36 OPR/106.0.0.0",
        "Mozilla/5.0 (compatible; MSIE 9.0; Windows Phone OS 7.5; Trident/5.0; IEMobile/9.0; Nokia; 800)",
        "Mozilla/5.0 (Windows Phone 8.1; ARM; Trident/7.0; Touch; rv:11.0; IEMobile/11.0; NOKIA; RM-910) like Gecko",
        "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; HTC_HD2_T8585; Windows Phone 6.5)",
        "Opera/9.80 (Android; Opera Mini/36.2.2254/191.303; U; en) Presto/2.12.423 Version/12.16",
        "Opera/9.80 (Android 2.2.1; Linux; Opera Mobi/ADR-1301080958) Presto/2.11.355 Version/12.10",
        "Mozilla/5.0 (Windows Phone 10.0; Android 6.0.1; Microsoft; RM-1118) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/52.0.2743.116 Mobile Safari/537.36 Edge/15.15254",
        # These user agents come from phones and tablets whose browsers request pages for desktops.
        "Opera/9.80 (X11; Linux zvav; U; en) Presto/2.12.423 Version/12.16",
        "Mozilla/5.0 (Windows NT 6.2; ARM; Trident/7.0; Touch; rv:11.0; WPDesktop; Lumia 435) like Gecko",
        f"Mozilla/5.0 (Windows NT 10.0; ARM; Lumia 550) {KHTML} Chrome/46.0.2486.0 Safari/537.36 Edge/13.10586",
        f"Mozilla/5.0 (X11; U; Linux x86_64; en-US) {KHTML} Chrome/11.0.696 Safari/534.35 Puffin/3",
        f"Mozilla/5.0 (X11; Linux x86_64) {KHTML} Chrome/11.0.696.34 Safari/534.24 XiaoMi/MiuiBrowser/9",
        "Mozilla/5.0 (Macintosh; U; Intel Mac OS X 10_6_3; HTC_Flyer_P512; de) AppleWebKit/533.16 (KHTML, like Gecko) Version/5.0 "
        "Safari/533.16",
        "Mozilla/5.0 (Android 4.4; Mobile; rv:24.0) Gecko/24.0 Firefox/24.0",
        android("4.4").replace("Chrome/142", "Chrome/30"),
    ],
)
def test_requests_of_a_newer_desktop_browser_and_of_an_old_phone_are_human(agent: str) -> None:
    assert rule(agent) == "browser"


@pytest.mark.parametrize(
    "agent",
    [
        f"Scanner Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/120.0.0.0 Safari/537.36",
        f"User-Agent: Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/120.0.0.0 Safari/537.36",
        f"Link-Test/1.0: Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/120.0.0.0 Safari/537.36",
    ],
)
def test_a_desktop_user_agent_with_a_word_before_mozilla_is_suspected(agent: str) -> None:
    assert rule(agent) in ("program", "crawler")


@pytest.mark.parametrize(
    "agent",
    [
        f"MQQBrowser/3.0/Mozilla/5.0 (Linux; U; Android 2.2.2; zh-cn) {KHTML} Version/4.0 Mobile Safari/533",
        f"MQQBrowser/44 {IPHONE}",
        "SHARP-STX2/MC.40; Mozilla/5.0 (Profile/MIDP-2.0 Configuration/CLDC-1.1; Opera Mini/att/4.2.19039; U; en-US) Opera 9.50",
        "Treo800w/v0100 Mozilla/4.0 (compatible; MSIE 6.0; Windows CE; IEMobile 7.11)",
        "iPhone15Pro",
    ],
)
def test_a_phone_browser_with_a_word_before_its_user_agent_is_human(agent: str) -> None:
    assert rule(agent) == "browser"


@in_one_test
@pytest.mark.parametrize(
    "tool",
    [
        *[
            "PTST/240201",
            "CloudflareObservatory/1.0",
            "DatadogSynthetics",
            "GTmetrix",
            "Functionize",
            "Assetnote/1.0.0",
            "Cypress/13.6",
        ],
        *["Playwright/1.40", "Convertify", "UptimeRobot/2.0", "RuxitSynthetic/1.0", "Postman/10", "Time/1710630666672"],
    ],
)
def test_monitors_and_test_tools_that_control_a_complete_browser_are_suspected(tool: str) -> None:
    for agent in (f"Mozilla/5.0 ({WINDOWS}) {KHTML} Chrome/120.0.0.0 Safari/537.36 {tool}", android("13", f" {tool}")):
        assert classify(RequestTraits("GET", agent)).verdict is Verdict.SUSPECTED


@pytest.mark.parametrize(
    "agent",
    [
        f"{IPHONE} TripAdvisor/54.1",
        "Mozilla/4.0 SonyEricssonC510v/R1DE",
        "YelpWebView/1.5 Android/6.0.1 YelpApp/9.9.0 (x-screen-scale 1.0;)",
        "Mozilla/4.0 (compatible; SonyEricssonJ20/R7BA Browser/NetFront/3.5 Profile/MIDP-2.1 Configuration/CLDC-1.1)",
        "Mozilla/5.0 (F03B;FOMA;like Gecko)",
        "Mozilla/5.0 (SAMSUNG; SAMSUNG-GT-S5330",
        "Mozilla/5.0 (SymbianOS/9.4; Series60/5.0 NokiaX6",
        "Mozilla/5.0 (X11; Linux x86_64; PadFone 2) AppleWebKit/534.24 (KHTML, like Gecko) Chrome/11.0.696.34 Safari/534.24",
        f"Mozilla/5.0 (Linux; U; Android 4.0.3; en-us; Novo 7 (Store.com) Build/IML74K) {KHTML} Version/4.0 Safari/534.30",
    ],
)
def test_phones_and_tablets_with_an_unusual_user_agent_are_human(agent: str) -> None:
    assert rule(agent) == "browser"


@pytest.mark.parametrize(
    "addition",
    ["cloudflareobservatory/1.0", "Neustar WPM", "JavaFX/19", "Cursor/3.0 Electron/39.8.1", "Lush Http Client", "Seo Advisor"],
)
def test_a_desktop_user_agent_with_the_name_of_a_tool_in_any_case_is_suspected(addition: str) -> None:
    for agent in (f"Mozilla/5.0 ({WINDOWS}) {KHTML} {addition} Chrome/120.0.0.0 Safari/537.36",):
        assert rule(agent) == "program"
        assert rule(agent.lower()) in ("program", "no_browser")
