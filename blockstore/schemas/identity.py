"""Shapes of the Identity API. Unknown fields are ignored, as in Keystone."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, ValidationError, fields, validates_schema

from blockstore.schemas import base
from blockstore.schemas.base import MAX_NAME, AnyValue, Part, TextField, field

MAX_ID = 64
MAX_SECRET = 4096
MAX_DESCRIPTION = 8192
"""A body of the Identity API has 16 KiB at most."""
MAX_ROLES = 50
METHODS = ("password", "token", "application_credential")


class IdentitySchema(base.Schema):
    """A body, or a part of one."""

    class Meta:
        unknown = EXCLUDE


class Bool(fields.Field[bool]):
    """A JSON boolean."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("It must be true or false.")
        return value


class Moment(fields.Field[datetime.datetime]):
    """A time in ISO 8601, UTC unless it says otherwise."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> datetime.datetime:
        try:
            at = datetime.datetime.fromisoformat(value)
            return at.astimezone(datetime.UTC).replace(tzinfo=None) if at.tzinfo else at
        except (TypeError, ValueError, OverflowError):
            raise ValidationError("It must be a time in ISO 8601, such as 2027-01-31T12:00:00Z.") from None


# --- tokens ------------------------------------------------------------------------------------------------


class InDomainBody(IdentitySchema):
    id = field(TextField, max_length=MAX_ID)
    name = field(TextField)

    @validates_schema
    def _named(self, data: Any, **_kw: Any) -> None:
        if not data:
            raise ValidationError("An id or a name is needed.")


class IdOrNameBody(IdentitySchema):
    """A user or a project: by id, or by name in a domain."""

    id = field(TextField, max_length=MAX_ID)
    name = field(TextField)
    domain = field(Part, schema=InDomainBody)

    @validates_schema
    def _named(self, data: Any, **_kw: Any) -> None:
        if "id" not in data and not ("name" in data and "domain" in data):
            raise ValidationError("An id is needed, or a name and its domain.")


class UserAndPasswordBody(IdOrNameBody):
    password = field(TextField, required=True, max_length=MAX_SECRET)


class PasswordProofBody(IdentitySchema):
    user = field(Part, required=True, schema=UserAndPasswordBody)


class TokenProofBody(IdentitySchema):
    id = field(TextField, required=True)


class CredentialProofBody(IdentitySchema):
    id = field(TextField, max_length=MAX_ID)
    name = field(TextField)
    user = field(Part, schema=IdOrNameBody)
    secret = field(TextField, required=True, max_length=MAX_SECRET)

    @validates_schema
    def _named(self, data: Any, **_kw: Any) -> None:
        if "id" not in data and not ("name" in data and "user" in data):
            raise ValidationError("An id is needed, or a name and its user.")


class Methods(fields.Field[list[str]]):
    """The methods of a login; their number is checked before the methods themselves."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> list[str]:
        if not isinstance(value, list):
            raise ValidationError("It must be a list.")
        if not 1 <= len(value) <= len(METHODS) or not all(method in METHODS for method in value):
            raise ValidationError(f"It must name one to {len(METHODS)} of {', '.join(METHODS)}.")
        return value


class ProofsBody(IdentitySchema):
    methods = field(Methods, required=True)
    password = field(Part, schema=PasswordProofBody)
    token = field(Part, schema=TokenProofBody)
    application_credential = field(Part, schema=CredentialProofBody)


class ScopesBody(IdentitySchema):
    project = field(Part, schema=IdOrNameBody)
    domain = field(Part, schema=InDomainBody)
    system = field(AnyValue)
    unscoped = field(AnyValue)

    @validates_schema
    def _one(self, data: Any, **_kw: Any) -> None:
        if len(data) != 1:
            raise ValidationError("Name exactly one of project, domain, system.")
        if "system" in data and data["system"] != {"all": True}:
            raise ValidationError({"system": ['The only system is {"all": true}.']})


class Scope(Part):
    """One scope, or the word unscoped."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> Any:
        return value if value == "unscoped" else super()._deserialize(value, attr, data, **kw)


class AuthBody(IdentitySchema):
    identity = field(Part, required=True, schema=ProofsBody)
    scope = field(Scope, schema=ScopesBody)


class AskTokenBody(IdentitySchema):
    auth = field(Part, required=True, schema=AuthBody)


# --- accounts ----------------------------------------------------------------------------------------------


def _name(**kw: Any) -> Any:
    return field(TextField, min_length=1, strip=True, **kw)


def _description() -> Any:
    return field(TextField, max_length=MAX_DESCRIPTION, allow_none=True)


class NewDomainBody(IdentitySchema):
    name = _name(required=True)
    description = _description()
    enabled = field(Bool)


class CreateDomainBody(IdentitySchema):
    domain = field(Part, required=True, schema=NewDomainBody)


class DomainChangeBody(IdentitySchema):
    name = _name()
    description = _description()
    enabled = field(Bool)


class ChangeDomainBody(IdentitySchema):
    domain = field(Part, required=True, schema=DomainChangeBody)


class NewProjectBody(NewDomainBody):
    domain_id = field(TextField, max_length=MAX_ID)
    parent_id = field(TextField, max_length=MAX_ID, allow_none=True)
    is_domain = field(Bool)

    @validates_schema
    def _flat(self, data: Any, **_kw: Any) -> None:
        if data.get("is_domain"):
            raise ValidationError({"is_domain": ["To create a domain, use POST /v3/domains."]})
        if data.get("parent_id") not in (None, data.get("domain_id", data.get("parent_id"))):
            raise ValidationError({"parent_id": ["Projects cannot contain projects; the parent must be a domain."]})


class CreateProjectBody(IdentitySchema):
    project = field(Part, required=True, schema=NewProjectBody)


class ProjectChangeBody(DomainChangeBody):
    pass


class ChangeProjectBody(IdentitySchema):
    project = field(Part, required=True, schema=ProjectChangeBody)


class NewUserBody(IdentitySchema):
    name = _name(required=True)
    password = field(TextField, min_length=1, max_length=MAX_SECRET, allow_none=True)
    domain_id = field(TextField, max_length=MAX_ID)
    default_project_id = field(TextField, max_length=MAX_ID, allow_none=True)
    email = field(TextField, allow_none=True)
    description = _description()
    enabled = field(Bool)


class CreateUserBody(IdentitySchema):
    user = field(Part, required=True, schema=NewUserBody)


class UserChangeBody(NewUserBody):
    name = _name()


class ChangeUserBody(IdentitySchema):
    user = field(Part, required=True, schema=UserChangeBody)


class PasswordsBody(IdentitySchema):
    original_password = field(TextField, required=True, max_length=MAX_SECRET)
    password = field(TextField, required=True, min_length=1, max_length=MAX_SECRET)


class ChangePasswordBody(IdentitySchema):
    user = field(Part, required=True, schema=PasswordsBody)


class NewRoleBody(IdentitySchema):
    name = _name(required=True)
    description = _description()
    domain_id = field(TextField, max_length=MAX_ID, allow_none=True)

    @validates_schema
    def _of_all(self, data: Any, **_kw: Any) -> None:
        if data.get("domain_id"):
            raise ValidationError({"domain_id": ["This service has no roles of a single domain."]})


class CreateRoleBody(IdentitySchema):
    role = field(Part, required=True, schema=NewRoleBody)


class RoleChangeBody(IdentitySchema):
    name = _name()
    description = _description()


class ChangeRoleBody(IdentitySchema):
    role = field(Part, required=True, schema=RoleChangeBody)


class Roles(fields.Field[list[Any]]):
    """A list of roles, each by id or name."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > MAX_ROLES:
            raise ValidationError(f"It must be a list of at most {MAX_ROLES} roles.")
        return [self._role(one) for one in value]

    def _role(self, given: Any) -> dict[str, str]:
        found = {key: given[key] for key in ("id", "name") if key in given} if isinstance(given, Mapping) else {}
        if not found or not all(isinstance(ref, str) and len(ref) <= MAX_NAME for ref in found.values()):
            raise ValidationError(f"Each must be an object with an id or a name of at most {MAX_NAME} characters.")
        return found


class NewCredentialBody(IdentitySchema):
    name = _name(required=True)
    description = _description()
    secret = field(TextField, min_length=1, max_length=MAX_SECRET, allow_none=True)
    expires_at = field(Moment, allow_none=True)
    roles = field(Roles)
    unrestricted = field(Bool)
    access_rules = field(AnyValue)

    @validates_schema
    def _no_rules(self, data: Any, **_kw: Any) -> None:
        if data.get("access_rules"):
            raise ValidationError({"access_rules": ["Access rules are not supported; limit the roles instead."]})


class CreateCredentialBody(IdentitySchema):
    application_credential = field(Part, required=True, schema=NewCredentialBody)
