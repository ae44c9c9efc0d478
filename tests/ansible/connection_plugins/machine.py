"""A connection into a machine of scripts/lib/machines.sh, by its namespaces."""

import os
import subprocess

from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: machine
short_description: Runs modules on a machine in namespaces
description: Enters the namespaces of the first process of a machine, as root.
options:
  directory:
    description: Where NAME.pid has the machine's first process.
    env: [{ name: MACHINES }]
    type: path
    required: true
"""


class Connection(ConnectionBase):
    """One machine."""

    transport = "machine"
    has_pipelining = True

    def _connect(self):
        if self._connected:
            return self
        path = os.path.join(self.get_option("directory"), f"{self._play_context.remote_addr}.pid")
        try:
            with open(path, encoding="ascii") as file:
                pid = str(int(file.read()))
        except (OSError, ValueError) as error:
            raise AnsibleConnectionFailure(f"there is no such machine: {error}") from error
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wdns=/root"]
        # The program for the machine's own search path, without what the control node has in its environment.
        self._enter = ["nsenter", "--target", pid, *spaces, "env", "-i", "HOME=/root", "LANG=C.UTF-8"]
        self._enter += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        self._connected = True
        return self

    def _run(self, argv, data=None):
        done = subprocess.run(self._enter + argv, input=data or b"", capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(["sh", "-c", cmd], in_data)

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        if not os.path.exists(in_path):
            raise AnsibleFileNotFound(f"{in_path} is not there")
        with open(in_path, "rb") as file:
            code, _, error = self._run(["sh", "-c", 'cat >"$1"', "put", out_path], file.read())
        if code != 0:
            raise AnsibleConnectionFailure(f"cannot write {out_path}: {error.decode(errors='replace')}")

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        code, out, error = self._run(["cat", in_path])
        if code != 0:
            raise AnsibleConnectionFailure(f"cannot read {in_path}: {error.decode(errors='replace')}")
        with open(out_path, "wb") as file:
            file.write(out)

    def close(self):
        self._connected = False
