"""QoS specs: limits of volume types, enforced by the hypervisor or the storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import check_growth, lengths
from blockstore.api.types.types import find_type
from blockstore.db.models import QosPair, QosSpecs, VolumeType, new_id
from blockstore.errors import BadRequest, Conflict, NotFound
from blockstore.schemas import qos_specs as schemas
from blockstore.schemas.base import is_uuid, query_flag

routes = Routes()

LISTING = listing.Listing(
    model=QosSpecs,
    noun="QoS specs",
    collection="qos-specs",
    links_key="qos_specs_links",
    columns=listing.columns_of(QosSpecs),
    public=frozenset({"id", "name", "consumer"}),
)

PLACE = "/qos-specs/<qos_id>"


@routes.get("/qos-specs", policy="volume_extension:qos_specs_manage:get_all")
def index(call: Call) -> dict[str, Any]:
    """List the QoS specs."""
    page = listing.page(call, LISTING, select(QosSpecs))
    return {"qos_specs": [_render(row) for (row,) in page.rows], **page.envelope}


@routes.get(PLACE, policy="volume_extension:qos_specs_manage:get")
def show(call: Call, qos_id: str) -> dict[str, Any]:
    """Show QoS specs by their id."""
    return _with_links(call, _find(call, qos_id))


@routes.post("/qos-specs", policy="volume_extension:qos_specs_manage:create", body=schemas.CreateSpecsBody, status=200)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create QoS specs."""
    params = body["qos_specs"]
    if call.session.execute(select(QosSpecs.id).where(QosSpecs.name == params["name"])).first() is not None:
        raise Conflict(f"Qos specs {params['name']} already exists.")
    check_growth(f"qos specs {params['name']}", {}, params["specs"])
    row = QosSpecs(
        id=new_id(),
        name=params["name"],
        consumer=params["consumer"],
        pairs=[QosPair(key=key, value=value) for key, value in sorted(params["specs"].items())],
    )
    call.session.add(row)
    call.session.flush()
    return _with_links(call, row)


@routes.put(PLACE, policy="volume_extension:qos_specs_manage:update", body=schemas.ChangeSpecsBody)
def change(call: Call, qos_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add or change specs, or change the consumer."""
    row = _find(call, qos_id, lock=True)
    given = dict(body["qos_specs"])
    row.consumer = given.pop("consumer", row.consumer)
    check_growth(f"qos specs {qos_id}", lengths(row.specs), given)
    present = {pair.key: pair for pair in row.pairs}
    for key, value in given.items():
        if key in present:
            present[key].value = value
        else:
            row.pairs.append(QosPair(key=key, value=value))
    return {"qos_specs": body["qos_specs"]}


@routes.put(
    f"{PLACE}/delete_keys", policy="volume_extension:qos_specs_manage:delete", body=schemas.DeleteKeysBody, status=202
)
def delete_keys(call: Call, qos_id: str, body: Mapping[str, Any]) -> None:
    """Remove some keys of QoS specs."""
    row = _find(call, qos_id, lock=True)
    for key in body["keys"]:
        if key not in row.specs:
            raise NotFound(f"The QoS specs {qos_id} have no key {key}.")
    row.pairs = [pair for pair in row.pairs if pair.key not in body["keys"]]


@routes.delete(PLACE, policy="volume_extension:qos_specs_manage:delete")
def remove(call: Call, qos_id: str) -> None:
    """Remove QoS specs; with ``force``, even if types use them."""
    force = query_flag(call.query, "force")
    row = _find(call, qos_id, lock=True)
    types = _types_of(call.session, qos_id)
    if types and not force:
        raise BadRequest(
            f"QoS specs {qos_id} are in use by {len(types)} volume types; disassociate these first, or use force."
        )
    _take_away(call.session, qos_id)
    call.session.delete(row)


@routes.get(f"{PLACE}/associations", policy="volume_extension:qos_specs_manage:get_all")
def associations(call: Call, qos_id: str) -> dict[str, Any]:
    """List the types that use the QoS specs."""
    _find(call, qos_id)
    return {
        "qos_associations": [
            {"association_type": "volume_type", "name": row.name, "id": row.id}
            for row in _types_of(call.session, qos_id)
        ]
    }


@routes.get(f"{PLACE}/associate", policy="volume_extension:qos_specs_manage:update", status=202, writes=True)
def associate(call: Call, qos_id: str) -> None:
    """Associate the QoS specs with a type."""
    _find(call, qos_id, lock=True)
    row = _type_asked_for(call)
    if row.qos_specs_id not in (None, qos_id):
        raise BadRequest(f"Invalid volume type: type {row.id} has the QoS specs {row.qos_specs_id} already.")
    row.qos_specs_id = qos_id


@routes.get(f"{PLACE}/disassociate", policy="volume_extension:qos_specs_manage:update", status=202, writes=True)
def disassociate(call: Call, qos_id: str) -> None:
    """Disassociate the QoS specs from a type."""
    _find(call, qos_id, lock=True)
    row = _type_asked_for(call)
    if row.qos_specs_id == qos_id:
        row.qos_specs_id = None


@routes.get(f"{PLACE}/disassociate_all", policy="volume_extension:qos_specs_manage:update", status=202, writes=True)
def disassociate_all(call: Call, qos_id: str) -> None:
    """Disassociate the QoS specs from every type."""
    _find(call, qos_id, lock=True)
    _take_away(call.session, qos_id)


def _type_asked_for(call: Call) -> VolumeType:
    type_id = call.query.get("vol_type_id")
    if not type_id:
        raise BadRequest("vol_type_id is missing: the query must name a volume type.")
    return find_type(call, type_id, by_name=False, lock=True)


def _find(call: Call, qos_id: str, *, lock: bool = False) -> QosSpecs:
    row = call.session.get(QosSpecs, qos_id, with_for_update=lock or None) if is_uuid(qos_id) else None
    if row is None:
        raise NotFound(f"No such qos spec {qos_id}.")
    return row


def _types_of(session: Session, qos_id: str) -> list[VolumeType]:
    return list(session.scalars(select(VolumeType).where(VolumeType.qos_specs_id == qos_id).order_by(VolumeType.name)))


def _take_away(session: Session, qos_id: str) -> None:
    session.execute(update(VolumeType).where(VolumeType.qos_specs_id == qos_id).values(qos_specs_id=None))


def _render(row: QosSpecs) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "consumer": row.consumer, "specs": row.specs}


def _with_links(call: Call, row: QosSpecs) -> dict[str, Any]:
    return {"qos_specs": _render(row), "links": call.links.of_resource("qos-specs", row.id)}
