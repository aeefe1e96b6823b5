"""The one place that wires the parts together. The web, the portal and the command line hold a `Service` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from shortener import accounts
from shortener.accounts import Credentials, Directory, host_of
from shortener.click.recorder import Places, Recorder
from shortener.conversion.service import Conversions
from shortener.dlr import DeliveryReports
from shortener.ids import ClickIds, IdMaker
from shortener.jobs import Bell, Job, Jobs
from shortener.log.tallies import Cohorts
from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.purge import Purge
from shortener.report import counts
from shortener.report.status import Teller
from shortener.rewrite.codes import Codes
from shortener.rewrite.service import Rewriter
from shortener.secret import Secret, SecretError, open_secret
from shortener.settings import Settings
from shortener.store.database import Database
from shortener.store.installation import remember
from shortener.store.migrate import prepare
from shortener.store.open import open_database
from shortener.store.types import to_ms

DIRECTORY_EVERY = 0.5  # seconds between two looks at the version of the accounts
COUNTS_EVERY = 1.0  # seconds after which what happened is folded into the counts


@dataclass(slots=True)
class Service:
    """All parts, ready. `first_credentials` is set only by the very first start."""

    settings: Settings
    clock: Clock
    secret: Secret
    database: Database
    directory: Directory
    ids: IdMaker
    click_ids: ClickIds
    codes: Codes
    cohorts: Cohorts
    rewriter: Rewriter
    recorder: Recorder
    teller: Teller
    conversions: Conversions
    delivery_reports: DeliveryReports
    events_bell: Bell  # rung when a transaction wrote events
    jobs: Jobs
    metrics: Metrics
    first_credentials: Credentials | None = None
    ready: bool = field(default=False)

    def now_ms(self) -> int:
        return to_ms(self.clock())

    def start(self, *, web: bool = True, deliver: bool = True) -> None:
        """Begin the background work; needs a running loop."""
        if web:
            self.recorder.start()
        self.jobs.start()
        self.ready = True

    async def close(self, grace: float = 8.0) -> None:
        """Write what waits, stop the background work, let go of the store."""
        self.ready = False
        await self.recorder.stop(grace)
        await self.jobs.stop()
        await self.database.close()


async def open_service(settings: Settings, *, clock: Clock = utcnow, owner: bool = True) -> Service:
    """Open the store (made ready on the very first start) and build every part.

    Raises StoreUnavailable, SchemaMismatch, SecretError."""
    secret = open_secret(settings.secret, settings.data_dir)
    await prepare(settings.store_url)
    database = await open_database(settings.store_url, owner=owner)
    try:
        kept = await database.write(remember, "secret", secret.fingerprint)
        if kept != secret.fingerprint:
            raise SecretError("this database belongs to an installation with another SECRET: codes and secrets would not fit")
        first = await database.write(accounts.ensure_default, clock())
        return await _build(settings, clock, secret, database, first)
    except BaseException:
        await database.close()
        raise


async def _build(settings: Settings, clock: Clock, secret: Secret, database: Database, first: Credentials | None) -> Service:
    directory = Directory(database)
    await directory.refresh()
    ids = IdMaker(database.node, lambda: to_ms(clock()))
    click_ids = ClickIds(secret.key("click ids"))
    events_bell = Bell()
    cohorts = Cohorts()
    codes = Codes(secret.code_salt, settings.code_bits)
    jobs = Jobs()
    jobs.add(Job("directory", DIRECTORY_EVERY, lambda: _refresh(directory)))
    jobs.add(Job("counts", COUNTS_EVERY, lambda: _fold(database)))
    purge = Purge(database, settings)
    jobs.add(Job("purge", settings.purge_interval, lambda: purge.step(clock())))
    recorder = Recorder(
        database,
        ids,
        click_ids,
        places_of(directory),
        deadline=settings.hit_deadline,
        waiting_limit=settings.hits_waiting,
        on_events=events_bell.ring,
    )
    rewriter = Rewriter(
        database,
        ids,
        codes,
        cohorts,
        clock,
        base_url=settings.base_url,
        is_ours=is_ours_of(settings, directory),
        link_ttl=timedelta(days=settings.link_ttl_days),
        batch_limit=settings.batch_limit,
    )
    metrics = Metrics()
    for part in (recorder, jobs, purge):
        part.offer(metrics)
    return Service(
        settings=settings,
        clock=clock,
        secret=secret,
        database=database,
        directory=directory,
        ids=ids,
        click_ids=click_ids,
        codes=codes,
        cohorts=cohorts,
        rewriter=rewriter,
        recorder=recorder,
        teller=Teller(base_url_of(settings, directory), click_ids.spell),
        conversions=Conversions(database, ids, click_ids, clock, on_events=events_bell.ring),
        delivery_reports=DeliveryReports(database, ids, on_events=events_bell.ring),
        events_bell=events_bell,
        jobs=jobs,
        metrics=metrics,
        first_credentials=first,
    )


def base_url_of(settings: Settings, directory: Directory) -> Callable[[int], str]:
    """The prefix of the short links of a domain, by its number; 0 is BASE_URL."""

    def base_url(domain_id: int) -> str:
        domain = directory.domain_by_id(domain_id)
        return domain.base_url if domain else settings.base_url

    return base_url


def is_ours_of(settings: Settings, directory: Directory) -> Callable[[str], bool]:
    base = host_of(settings.base_url)

    def is_ours(url: str) -> bool:
        host = host_of(url)
        return host == base or directory.domain(host) is not None

    return is_ours


async def _refresh(directory: Directory) -> int:
    await directory.refresh()
    return 0


async def _fold(database: Database) -> int:
    """Goes on at once only after a full batch: under load one commit a second folds what many transactions left."""
    folded = await database.write(counts.fold)
    return folded if folded >= counts.FOLD_LIMIT else 0


def places_of(directory: Directory) -> Places:
    def fallback(application_id: int, domain_id: int) -> str | None:
        domain = directory.domain_by_id(domain_id)
        application = directory.application(application_id)
        own = domain.fallback_url if domain else None
        return own or (application.settings.fallback_url if application else None)

    def click_id_param(application_id: int) -> str | None:
        application = directory.application(application_id)
        return application.settings.click_id_param if application else None

    def disabled(application_id: int, domain_id: int) -> bool:
        domain = directory.domain_by_id(domain_id)
        application = directory.application(application_id)
        return bool((domain and domain.disabled) or (application and application.disabled))

    return Places(fallback, click_id_param, disabled)
