"""The durable record of a study (Optuna storage) and its mirror for lineage (MLflow)."""

from heterosis.ledger.record import Candidate, Proposal, Record

__all__ = ["Candidate", "Proposal", "Record"]
