"""What may stand in an audit log: every kind of record and the facts that it may carry.

A closed list, so that nothing about a patient gets into a log that is shown to others: facts are
names, hashes, codes and counts that the federation knows anyway. To record something new, add it here.
"""

from __future__ import annotations

from typing import Final

KINDS: Final[dict[str, frozenset[str]]] = {
    kind: frozenset(facts.split())
    for kind, facts in {
        # who belongs to the federation
        "federation_founded": "name operator",
        "site_invited": "name role replaces",
        "invitation_withdrawn": "name",
        "site_joined": "name role own_authority",
        "join_refused": "name",
        "certificate_renewed": "name",
        "site_left": "name",
        "member_revoked": "name",
        "operator_added": "name",
        "operator_refused": "name",
        "authority_trusted": "name count",
        # what a coordinator does
        "run_launched": "run request quorum",
        "run_begun": "run",
        "run_paused": "run",
        "run_resumed": "run",
        "run_stopped": "run",
        "run_failed": "run",
        "run_ended": "run rounds",
        "plan_offered": "run plan",
        "plan_agreed": "run plan",
        "round_committed": "run round model sites",
        "update_refused": "run round site code",
        "question_asked": "plan request",
        "question_sent": "question plan",
        "question_answered": "question site code",
        "question_withdrawn": "question",
        "question_ended": "question sites",
        "model_added": "run model number",
        "model_promoted": "number model",
        "model_fetched": "number model name",
        # what a hospital does
        "offered": "plan",
        "approved": "plan",
        "refused": "plan code",
        "declared": "plan patients",
        "accepted": "plan offer epsilon ledger_size ledger_head noise_multiplier sampling_rate steps",
        "released": "plan round base update ledger_size ledger_head",
        "answered": "plan answer ledger_size ledger_head",
        "rehearsed": "plan",
        "policy_changed": "policy before",
        "ledger_accepted": "ledger_size ledger_head recharged ended",
        # who saw or changed what of the patients' data
        "access_granted": "right about",
        "access_refused": "right about",
        "access_changed": "roles before",
        "store_made": "",
        "store_restored": "",
        # what the logs say of each other
        "heads_exchanged": "peer size root own_size own_root",
        "peer_log_refused": "peer size root time key signature"
        " held_size held_root held_time held_key held_signature",
        "own_log_refused": "peer size root time key signature",
        "peer_log_accepted": "peer heads",
        # the processes
        "started": "version",
        "stopped": "version",
    }.items()
}
