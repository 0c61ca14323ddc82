"""A stack of its own from docker-compose.yml, driven from outside: its own project, port, secrets and volumes."""

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0  # seconds that a service may take to become healthy
LONGEST = 3600.0  # seconds that a command may take; building an image downloads gigabytes


class Composed:
    """What to say to Compose and to the container engine.

    COMPOSE is how Compose is called ("docker compose"), ENGINE what runs its containers ("docker"). HEALTHY, when set, is a command that
    takes containers and returns when they are healthy; it is for engines that do not run health checks by themselves.
    """

    def __init__(self, *profiles: str, port: int = 18000) -> None:
        self.compose = shlex.split(os.environ.get("COMPOSE") or "docker compose")
        self.engine = shlex.split(os.environ.get("ENGINE") or "docker")
        self.healthy = shlex.split(os.environ.get("HEALTHY") or "")
        self.project, self.profiles = "potstill-check", profiles
        self.url = f"http://127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="potstill-compose-"))
        self.secrets = self.folder / "secrets"
        objects = port + 1
        bucket = {"POTSTILL_STORE": "s3://potstill", "POTSTILL_STORE_ENDPOINT": "http://objects:7070"}
        bucket |= {"POTSTILL_STORE_PUBLIC_ENDPOINT": f"http://127.0.0.1:{objects}"}
        own = {
            "POTSTILL_PORT": str(port),
            "POTSTILL_OBJECTS_PORT": str(objects),
            "POTSTILL_PROMETHEUS_PORT": str(port + 2),
            "POTSTILL_GRAFANA_PORT": str(port + 3),
        }
        own |= {"POTSTILL_SECRETS": str(self.secrets), "COMPOSE_PROFILES": ",".join(profiles), "POTSTILL_BIND": "127.0.0.1"}
        self.environment = os.environ | own | (bucket if "s3" in profiles else {})
        subprocess.run(["sh", str(ROOT / "docker/make-secrets.sh"), str(self.secrets)], check=True, stdout=subprocess.DEVNULL)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker compose ARGUMENTS`, in this project."""
        chosen = [word for profile in self.profiles for word in ("--profile", profile)]
        return self._do([*self.compose, "-p", self.project, *chosen, *arguments], check)

    def of_engine(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker ARGUMENTS`."""
        return self._do([*self.engine, *arguments], check)

    def container(self, service: str) -> str:
        """The name of a service's container, running or not."""
        labels = {"com.docker.compose.project": self.project, "com.docker.compose.service": service}
        filters = [word for key, value in labels.items() for word in ("--filter", f"label={key}={value}")]
        names = self.of_engine("ps", "--all", *filters, "--format", "{{.Names}}").stdout.split()
        if len(names) != 1:
            raise LookupError(f"{service} has {len(names)} containers: {', '.join(names) or 'none'}")
        return names[0]

    def inside(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in a running service."""
        return self.of_engine("exec", self.container(service), *command, check=False)

    def up(self, services: Sequence[str]) -> None:
        """Start services, each of which is ready when this returns: healthy, or ended well where it is to end."""
        self.run("up", "-d", "--no-build", "--no-deps", *services)
        for service in services:
            self.wait(service)

    def wait(self, service: str) -> None:
        """Return when a service is healthy, or has ended well if it has no health check."""
        name, until = self.container(service), time.monotonic() + PATIENCE
        while (state := self._state(name)) not in ("healthy", "ended"):
            if self.healthy and state == "running":
                self._do([*self.healthy, name], True)
                return
            if time.monotonic() > until or state == "failed":
                logs = self.of_engine("logs", "--tail", "20", name, check=False)
                raise TimeoutError(f"{service} is {state}:\n{logs.stdout}{logs.stderr}")
            time.sleep(0.5)

    def _state(self, name: str) -> str:
        """healthy, running (and not known to be healthy), ending (it has no health check, and is to end), ended (well) or failed."""
        (found,) = json.loads(self.of_engine("inspect", name).stdout)
        state = found["State"]
        checked = (state.get("Health") or state.get("Healthcheck") or {}).get("Status")
        if state["Status"] == "exited":
            return "failed" if state["ExitCode"] else "ended"
        if not found["Config"].get("Healthcheck"):
            return "ending"
        return "healthy" if checked == "healthy" and not self.healthy else "running"

    def _do(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LONGEST
        )
        if check and done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{said}")
        return done
