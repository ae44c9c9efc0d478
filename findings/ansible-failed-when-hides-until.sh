#!/usr/bin/env bash
# A task of Ansible whose `until` is never met passes if the task has a `failed_when` that does not say so itself.
#
# First guess: `until` with `retries` fails the task when its tries are used up, and `failed_when` only adds further reasons,
# such as a program that cannot be run. Seen: the tries are used up, the log says FAILED - RETRYING for each of them, and
# the task is ok: after the loop the result is marked as failed, and `failed_when` is evaluated behind that and overwrites
# it. A roll-out whose verification is written so (wait until the service is healthy; failed when the command itself is not
# there) goes on to the next hosts with a service that is not. What `until` waits for has to stand in `failed_when` again.
#
# Needs python3 with venv and the Python Package Index. Exit code 0: as described.
set -euo pipefail
version=2.18.6
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --quiet --disable-pip-version-check install "ansible-core==$version"
cat >"$dir/play.yml" <<'YAML'
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Wait for what never comes
      ansible.builtin.command: "true"
      register: got
      until: got.rc == 7
      retries: 2
      delay: 0
      failed_when: "{{ reasons }}"
YAML
export ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_HOME=$dir/home ANSIBLE_NOCOLOR=1
run() { # FAILED_WHEN: the play's exit code
    local code=0
    sed "s/\"{{ reasons }}\"/$1/" "$dir/play.yml" >"$dir/this.yml"
    if [[ -z $1 ]]; then sed -i '/failed_when/d' "$dir/this.yml"; fi
    "$dir/venv/bin/ansible-playbook" -i localhost, -c local "$dir/this.yml" >"$dir/log" 2>&1 || code=$?
    echo "$code, $(grep -c 'FAILED - RETRYING' "$dir/log") times told of a retry"
}
plain=$(run '')
other=$(run 'got.rc == 3')
again=$(run 'got.rc != 7')
echo "ansible-core $version, until never met: exit code $plain; with a failed_when of another reason: $other; with one of the same: $again"
[[ ${plain%%,*} == 2 && ${other%%,*} == 0 && ${again%%,*} == 2 ]]
