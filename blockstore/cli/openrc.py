"""The commands openrc and clouds-yaml: how clients reach this service."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from blockstore import address
from blockstore.cli.command import configured
from blockstore.config import Config, parse_listen
from blockstore.errors import BlockstoreError

# Variables that a shell may have from another cloud, and variables that clients would prefer to the exports below.
_FOREIGN = (
    "OS_CLOUD OS_AUTH_TYPE OS_AUTH_PLUGIN OS_AUTH_STRATEGY OS_AUTH_URL OS_URL OS_TOKEN OS_USERNAME OS_USER_ID"
    " OS_PASSWORD OS_PASSCODE OS_USER_DOMAIN_ID OS_USER_DOMAIN_NAME OS_PROJECT_ID OS_PROJECT_NAME OS_PROJECT_DOMAIN_ID"
    " OS_PROJECT_DOMAIN_NAME OS_TENANT_ID OS_TENANT_NAME OS_DOMAIN_ID OS_DOMAIN_NAME OS_DEFAULT_DOMAIN"
    " OS_DEFAULT_DOMAIN_ID OS_DEFAULT_DOMAIN_NAME OS_TRUST_ID OS_SYSTEM_SCOPE OS_APPLICATION_CREDENTIAL_ID"
    " OS_APPLICATION_CREDENTIAL_NAME OS_APPLICATION_CREDENTIAL_SECRET OS_ACCESS_TOKEN OS_IDENTITY_PROVIDER OS_PROTOCOL"
    " OS_SERVICE_TYPE OS_ENDPOINT_OVERRIDE OS_BLOCK_STORAGE_ENDPOINT OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE"
    " OS_BLOCK_STORAGE_API_VERSION OS_BLOCK_STORAGE_DEFAULT_MICROVERSION OS_BLOCK_STORAGE_SERVICE_TYPE"
    " OS_VOLUME_ENDPOINT OS_VOLUME_ENDPOINT_OVERRIDE OS_VOLUME_DEFAULT_MICROVERSION OS_VOLUME_SERVICE_TYPE"
    " OS_VOLUMEV3_ENDPOINT_OVERRIDE OS_IDENTITY_API_VERSION OS_IDENTITY_ENDPOINT_OVERRIDE"
    " CINDER_USERNAME CINDER_PASSWORD CINDER_URL"
)


@click.command()
@configured
def openrc(config: Config) -> None:
    """Print the environment with which openstack, cinder and openstacksdk use this service: eval "$(blockstore openrc)"

    \b
    With the built-in identity, these are the usual variables, for the user admin.
    With auth = none, openstack and openstacksdk read OS_auth_type, OS_ENDPOINT and OS_VOLUME_API_VERSION;
    cinder reads OS_AUTH_SYSTEM, CINDER_ENDPOINT, CINDER_PROJECT_ID and OS_VOLUME_API_VERSION.
    Variables that would lead them to another service are unset.
    """
    from blockstore.microversions import CLIENTS

    values = _without_identity(config) if config.service.auth == "none" else _with_password(config)
    click.echo(f"unset {_FOREIGN};")  # each line ends in a semicolon for an eval without quotes
    for name, value in {**values, "OS_VOLUME_API_VERSION": str(CLIENTS)}.items():
        click.echo(f"export {name}={shlex.quote(value)};")


def _without_identity(config: Config) -> dict[str, str]:
    url = _endpoint(config)
    return {
        # compat: the command cinder cannot start with OS_AUTH_TYPE=none, because that plugin's option --os-endpoint
        # collides with its own. The command openstack needs that plugin. openstacksdk lowers the names it reads, and
        # cinder does not.
        "OS_auth_type": "none",
        "OS_ENDPOINT": url,
        "OS_AUTH_SYSTEM": "noauth",
        "CINDER_ENDPOINT": url,
        # compat: not OS_PROJECT_ID, which openstacksdk would pass to a plugin that does not accept it
        "CINDER_PROJECT_ID": "admin",
    }


def _with_password(config: Config) -> dict[str, str]:
    from blockstore.identity.bootstrap import read_password

    if config.service.auth == "keystone":
        raise BlockstoreError(
            f"The users are in Keystone at {config.keystone.auth_url}. Use the openrc or clouds.yaml of its"
            " administrator."
        )
    values = {
        "OS_AUTH_URL": f"{_endpoint(config).removesuffix('/v3')}/identity/v3",
        "OS_USERNAME": "admin",
        "OS_PASSWORD": read_password(config.state_dir),
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": config.identity.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    if config.service.tls_ca is not None:
        values["OS_CACERT"] = str(config.service.tls_ca.absolute())
    return values


@click.command("clouds-yaml")
@configured
@click.option("--name", default="blockstore", show_default=True, help="Name of the cloud, for OS_CLOUD or --os-cloud.")
@click.option(
    "--merge",
    is_flag=False,
    flag_value="",
    type=click.Path(),
    metavar="[FILE]",
    help="Add the cloud to FILE and keep its other clouds. Without FILE, use the file that openstack reads.",
)
def clouds_yaml(config: Config, name: str, merge: str | None) -> None:
    """Print a clouds.yaml for the user admin, or add it to an existing file: blockstore clouds-yaml --merge"""
    from blockstore.cli import clouds
    from blockstore.microversions import CLIENTS

    if not name or not name.isprintable():
        raise BlockstoreError("--name must not be empty, and must have printable characters only.")
    # openstacksdk reads the first, the commands `openstack volume` the second
    versions = {"block_storage_default_microversion": str(CLIENTS), "volume_api_version": str(CLIENTS)}
    cloud: dict[str, Any] = {}
    if config.service.auth == "none":
        cloud |= {"auth_type": "none", "auth": {"endpoint": _endpoint(config)}}
    else:
        values = _with_password(config)
        names = ("auth_url", "username", "password", "project_name", "user_domain_id", "project_domain_id")
        cloud |= {"auth": {key: values[f"OS_{key.upper()}"] for key in names}, "region_name": config.identity.region}
        if "OS_CACERT" in values:
            cloud["cacert"] = values["OS_CACERT"]
    cloud |= versions
    if merge is None:
        click.echo(clouds.document(name, cloud), nl=False)
        return
    path = Path(merge) if merge else clouds.default_file()
    clouds.merge_into(path, name, cloud)
    click.echo(f"{path} now has the cloud {name}. To use it: export OS_CLOUD={shlex.quote(name)}")


def _endpoint(config: Config) -> str:
    """Return the URL by which clients reach the service. Print a note if it does not serve now."""
    from blockstore.cli.local_client import is_answering

    service = config.service
    url = address.recorded_url(config.state_dir)
    host, port = parse_listen(service.listen, "[service] listen")
    where = f"blockstore: no service has used {config.state_dir} yet"
    if url is None:
        if port == 0 and not service.public_endpoint:
            raise BlockstoreError(f"No service has used {config.state_dir} yet, so the port is not known.")
        click.echo(f"{where}; this output works once it is started.", err=True)
        url = address.own_url(host, port, service.tls_certificate, service.tls_key)
    elif not is_answering(url, host):
        click.echo(
            f"blockstore: nothing answers at {url}, the last address of the service with {config.state_dir}; this"
            " output works once it is started.",
            err=True,
        )
    return f"{service.public_endpoint.rstrip('/') or url}/v3"
