"""Training over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tapster.contract.control import Job, Principal
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.limits import storage
from tapster.training import service
from tapster.training.service import TrainingRequest


def routes(parts: Parts) -> APIRouter:
    """The routes under /training."""
    router = APIRouter(prefix="/training", tags=["training"])

    @router.post("", status_code=202)
    def start_training(
        who: Annotated[Principal, Depends(need("training:write"))], request: TrainingRequest
    ) -> Job:
        """Train and compare models; the winner becomes the model's next version."""
        with parts.db.write() as tx:
            storage.check(tx, parts, who.tenant)
            return service.submit(tx, who.tenant, request)

    @router.get("/algorithms")
    def list_algorithms(
        who: Annotated[Principal, Depends(need("training:read"))],
    ) -> dict[str, Any]:
        """Every algorithm, the tasks it does, and what it lacks on this machine."""
        return {"algorithms": service.algorithms(), "metrics": service.metrics()}

    return router
