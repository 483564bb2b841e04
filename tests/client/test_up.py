"""From files of an EHR to twins, alerts and training, in one process that may be killed at any instant."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from client.counter import ask
from client.data import windows
from client.errors import ClientError
from client.home import SiteHome
from client.hospital import close_hospitals, hospital
from client.strongroom import open_store
from client.up import SiteProcess, examine
from tests.hospital_home import AUTOMATIC, founded
from tests.server.federation_of_processes import wait_until
from tests.site_home import ME, at_work, feed, observation, pseudonym, settle, site
from trust.audit import AuditLog
from trust.errors import TrustError
from trust.vault import KeyFile
from twin.connectors.feed import Batch

SECRETS = ("MRN-0042-KIRK", "MRN-0043-SULU", "Tiberius")


def _files(folder: Path, rows: int = 40) -> None:
    """Glucose of two patients every five minutes until now; of the first it falls until it is very low."""
    folder.mkdir(exist_ok=True)
    now = pd.Timestamp.now("UTC").floor("s")
    lines = []
    for number in range(rows):
        time = now - pd.Timedelta(minutes=5 * (rows - 1 - number))
        low = max(48.0, 110.0 + number % 3 - 10.0 * max(0, number - rows + 10))
        lines.append(observation(2 * number, SECRETS[0], "glucose", low, time))
        lines.append(observation(2 * number + 1, SECRETS[1], "glucose", 120.0 + number % 5, time))
    (folder / "Observation.ndjson").write_text("\n".join(lines) + "\n")


def _in_plain_text(folder: Path, words: tuple[str, ...]) -> list[str]:
    return [
        f"{word} in {path.name}"
        for path in folder.rglob("*")
        if path.is_file()
        for word in words
        if word.encode() in path.read_bytes()
    ]


def _read(home: SiteHome) -> bool:
    """Whether the one feed has ended and the ward is made; a dead process's socket answers nothing."""
    try:
        ask(home.door, "alerts")
        return str(ask(home.door, "feeds").facts["feeds"][0]["state"]) == "ended"
    except ClientError as error:
        if error.code == "unavailable":
            return False
        raise


def test_a_hospital_points_at_its_files_and_has_twins_alerts_and_quality(tmp_path: Path) -> None:
    _files(tmp_path / "ehr")
    home = site(tmp_path, feeds=feed(tmp_path / "ehr"))
    kirk, sulu = (pseudonym(home, name) for name in SECRETS[:2])
    with at_work(home):
        wait_until(lambda: _read(home))
        twin = ask(home.door, "twin", patient=kirk, why="treatment").facts
        (reading,) = twin["twin"]["readings"]
        assert (reading["signal"], reading["value"]) == ("glucose", 48.0) and "48 mg/dL" in twin["text"]
        found = {(alert["patient_id"], alert["rule"]) for alert in ask(home.door, "alerts").facts["alerts"]}
        assert {(kirk, "very-low-glucose"), (kirk, "low-glucose")} <= found
        assert sulu not in {patient for patient, _ in found}
        counts = ask(home.door, "quality").table
        assert counts is not None and int(counts.loc[counts["fate"].eq("kept"), "rows"].sum()) == 80
        assert set(counts["patient_id"]) == {""}
        (alert,) = [a for a in ask(home.door, "alerts").facts["alerts"] if a["rule"] == "very-low-glucose"]
        ask(home.door, "acknowledge", patient=kirk, alert=alert["id"], why="juice", user="somebody else")
    # What people said of an alert outlives the process, and who said it is who asked.
    with at_work(home):
        wait_until(lambda: _read(home))
        (again,) = [a for a in ask(home.door, "alerts").facts["alerts"] if a["rule"] == "very-low-glucose"]
        assert (again["id"], again["acknowledged_by"], again["why"]) == (alert["id"], ME, "juice")
        gone = ask(home.door, "erase", patient=kirk).facts["rows"]
        assert gone["observations"] == 40
        with pytest.raises(ClientError):
            ask(home.door, "twin", patient=kirk)
        assert ask(home.door, "alerts").facts["alerts"] == []
        assert len(ask(home.door, "twin", patient=sulu).facts["twin"]["readings"]) == 1
    assert _in_plain_text(home.directory, (*SECRETS, kirk, sulu)) == []
    with AuditLog(home.audit) as log:
        told = [(r.who, str(r.facts["right"])) for r in log.records(kinds=["access_granted"])]
    assert (ME, "twin:read") in told and (ME, "erase") in told


def test_a_process_that_is_killed_again_and_again_has_every_row_once(tmp_path: Path) -> None:
    _files(tmp_path / "ehr", rows=1500)
    home = site(tmp_path, feeds=feed(tmp_path / "ehr", rows_per_batch=300))
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "site", "up", "--home", str(home.directory)],
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"log-{life}").open("wb"),
        )
        try:
            commits = home.store.with_name(f"{home.store.name}.commits")
            before = commits.read_bytes()
            wait_until(lambda commits=commits, before=before: commits.read_bytes() != before)
            if life == 2:
                wait_until(lambda: _read(home))
                process.send_signal(signal.SIGTERM)
                assert process.wait(120.0) == 0
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        with open_store(home.store, home.vault, KeyFile(path=tmp_path / "key")) as store:
            found = store.site("st-anna", purpose="care", marked=True)
            counts = store.counts()
    assert len(found.observations) == 3000
    assert int(counts.loc[counts["fate"].eq("kept"), "rows"].sum()) == 3000
    names = [pseudonym(home, name) for name in SECRETS[:2]]
    assert _in_plain_text(home.directory, (*SECRETS, *names)) == []
    logs = "".join((tmp_path / f"log-{life}").read_text() for life in range(3))
    assert not any(word in logs for word in (*SECRETS, *names))


def test_a_full_disk_ends_the_process_and_with_room_again_nothing_is_missing(tmp_path: Path) -> None:
    _files(tmp_path / "ehr", rows=12_000)
    home = site(tmp_path, feeds=feed(tmp_path / "ehr", rows_per_batch=2_000))
    most = 300 << 10  # bytes that a file may get: of the log of commits, soon
    ended = subprocess.run(
        [sys.executable, "-m", "cli.main", "site", "up", "--home", str(home.directory)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        capture_output=True,
        text=True,
        timeout=300.0,
        check=False,
    )
    assert ended.returncode != 0 and "is the disk full" in ended.stderr
    with at_work(home):
        wait_until(lambda: _read(home))
        counts = ask(home.door, "quality").table
        assert counts is not None and int(counts.loc[counts["fate"].eq("kept"), "rows"].sum()) == 24_000


def test_a_withdrawal_holds_for_the_very_next_round_and_the_noise_stays(tmp_path: Path) -> None:
    with founded(tmp_path, AUTOMATIC) as coordinator:
        home = coordinator.home
        folder = Path(str(home.settings().data_path))
        home.save(type(home.settings())(federation="test", site="alpha", address="localhost:1"))
        settle(home)
        with at_work(home) as process:
            facts = pd.read_csv(folder / "patients.csv", dtype="str").melt("patient_id")
            facts.columns = pd.Index(["patient", "name", "value"])
            process_facts(process, Batch(facts=facts, position="1"))
            assert coordinator.declare().error == "too_few_patients"  # nobody said yes
            names = [pseudonym(home, f"alpha-{place:02d}") for place in range(12)]
            for name in names:
                ask(home.door, "consent", patient=name, research=True)
            assert coordinator.declare().patients == 10
            assert coordinator.accept().error == ""
            said, _ = coordinator.train(1)
            assert said.error == ""
            before = hospital(str(home.directory)).set_up(coordinator.plan)
            assert set(before.examples.patients) == set(names)
            ask(home.door, "consent", patient=names[3], research=False)
            said, _ = coordinator.train(2)
            assert said.error == ""
            after = hospital(str(home.directory)).set_up(coordinator.plan)
            assert set(after.examples.patients) == set(names) - {names[3]}
            # Noise and divisor follow from what the plan says, which the withdrawal does not change.
            assert (after.declared, before.declared) == (10, 10) and after.config == before.config
            for name in names:
                ask(home.door, "consent", patient=name, research=False)
            with pytest.raises(ClientError, match="too_few_patients"):
                windows(home, coordinator.plan.task, {})
        close_hospitals()
        with AuditLog(home.audit) as log:
            told = [
                str(record.facts["about"])
                for record in log.records(kinds=["access_granted"])
                if record.facts["right"] in ("consent:write", "training:read")
            ]
        withdrawn = next(place for place, about in enumerate(told) if about.endswith(": no"))
        assert told[withdrawn + 1].startswith("consenting patients")  # read anew, for the very next round


def process_facts(process: object, batch: Batch) -> None:
    """Takes a batch as a feed of the running process would bring it."""
    from client import research

    (custodian,) = research._OWNED.values()
    custodian.position("facts")
    custodian.take(batch, "facts")


def test_who_has_no_role_sees_nothing_and_a_researcher_no_twin(tmp_path: Path) -> None:
    _files(tmp_path / "ehr", rows=3)
    home = site(tmp_path, feeds=feed(tmp_path / "ehr"), roles=("researcher",))
    kirk = pseudonym(home, SECRETS[0])
    with at_work(home):
        for question, words in (
            ("twin", {"patient": kirk}),
            ("observations", {"patient": kirk}),
            ("alerts", {}),
            ("erase", {"patient": kirk}),
            ("training", {}),
            ("identify", {"identifier": SECRETS[0]}),
            ("quality_of_patients", {}),
        ):
            with pytest.raises(ClientError) as refused:
                ask(home.door, question, **words)
            assert refused.value.code == "access_refused"
        with pytest.raises(ClientError, match="too_few_patients"):  # it may; but nobody consents
            ask(home.door, "export", use="s1")
    with AuditLog(home.audit) as log:
        assert len(list(log.records(kinds=["access_refused"]))) == 7
    assert _in_plain_text(home.directory, SECRETS) == []


def test_an_export_holds_consenting_patients_under_other_names_and_dates(tmp_path: Path) -> None:
    _files(tmp_path / "ehr", rows=5)
    patient = (
        '{"resourceType": "Patient", "id": "MRN-0042-KIRK", "birthDate": "1933-03-22", "gender": "male",'
        ' "name": [{"family": "Tiberius"}]}'
    )
    (tmp_path / "ehr" / "Patient.ndjson").write_text(patient + "\n")
    home = site(tmp_path, feeds=feed(tmp_path / "ehr"))
    kirk = pseudonym(home, SECRETS[0])
    with at_work(home):
        wait_until(lambda: _read(home))
        ask(home.door, "consent", patient=kirk, research=True)
        one, other = (ask(home.door, "export", use=use) for use in ("s1", "s2"))
    assert one.table is not None and len(one.table) == 5
    names = {*one.facts["patients"], *other.facts["patients"], kirk}
    assert len(names) == 3
    assert one.table["time"].max() < pd.Timestamp("2000-01-03", tz="UTC")
    told = str(one.facts) + one.table.to_csv()
    for name in one.facts["patients"]:
        told = told.replace(name, "")  # random letters and digits, which may look like a year
    assert not any(word in told for word in (*SECRETS, "1933", str(pd.Timestamp.now("UTC").year)))
    assert one.facts["columns"]["age"]["values"] == [90.0]


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    home = site(tmp_path)
    home.feeds.write_text('[[feed]]\nkind = "pigeon"\nname = "a"\n')
    home.access.write_text('[users]\nanna = ["king"]\n')
    home.alerts.write_text('off = ["nothing"]\n')
    home.codes.write_text('[loinc]\n"1" = "mood"\n')
    home.store_settings.write_text("memory = 3\n")
    with pytest.raises(ClientError) as refused:
        examine(home)
    for part in ("pigeon", "king", "nothing", "mood", "memory", "key_file"):
        assert part in str(refused.value)


def test_a_key_that_is_another_or_gone_is_a_clear_error_and_shows_nothing(tmp_path: Path) -> None:
    home = site(tmp_path)
    key = tmp_path / "key"
    secret = key.read_text().strip()
    key.write_text("00" * 32 + "\n")
    with pytest.raises(TrustError, match="does not open the vault") as refused:
        SiteProcess(home).run()
    assert secret not in str(refused.value) and _in_plain_text(home.directory, (secret,)) == []


def test_patients_of_whom_no_fact_is_known_are_exported_too(tmp_path: Path) -> None:
    _files(tmp_path / "ehr", rows=5)
    home = site(tmp_path, feeds=feed(tmp_path / "ehr"))
    with at_work(home):
        wait_until(lambda: _read(home))
        ask(home.door, "consent", patient=pseudonym(home, SECRETS[0]), research=True)
        found = ask(home.door, "export", use="s1")
        assert len(found.facts["patients"]) == 1 and found.table is not None and len(found.table) == 5
        assert len(ask(home.door, "training").facts["patients"]) == 1
