"""Shapes of volume types, extra specs and access."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, validates_schema

from blockstore.schemas.base import METADATA_KEY, SPEC_KEY, BoolLike, Pairs, Part, Schema, TextField, check_pairs, field


class NewTypeBody(Schema):
    name = field(TextField, required=True, min_length=1, strip=True)
    description = field(TextField, printable=True, allow_none=True)
    extra_specs = field(Pairs, key=METADATA_KEY, null_values=True)
    is_public = field(BoolLike, data_key="os-volume-type-access:is_public")


class CreateTypeBody(Schema):
    volume_type = field(Part, required=True, schema=NewTypeBody)


class TypeChangeBody(Schema):
    name = field(TextField, min_length=1, strip=True, allow_none=True)
    description = field(TextField, printable=True, allow_none=True)
    is_public = field(BoolLike)

    @validates_schema
    def _says_something(self, data: Any, **_kw: Any) -> None:
        if all(value is None for value in data.values()):
            raise ValidationError("At least one of name, description, is_public is needed.")


class UpdateTypeBody(Schema):
    volume_type = field(Part, required=True, schema=TypeChangeBody)


class ProjectBody(Schema):
    project = field(TextField, required=True, min_length=1)


class AddProjectAccessBody(Schema):
    access = field(Part, required=True, schema=ProjectBody, data_key="addProjectAccess")


class RemoveProjectAccessBody(Schema):
    access = field(Part, required=True, schema=ProjectBody, data_key="removeProjectAccess")


class ExtraSpecsBody(Schema):
    extra_specs = field(Pairs, required=True, key=SPEC_KEY, null_values=True)


class OneSpecBody(Schema):
    """A bare pair: the body is the map itself."""

    class Meta:
        unknown = "include"

    @validates_schema(pass_original=True)
    def _one_pair(self, data: Any, original: Any, **_kw: Any) -> None:
        # Cinder allows a slash only when a type is created, not here: such a pair could never be changed.
        check_pairs(original, METADATA_KEY, null_values=True, least=1, most=1)
