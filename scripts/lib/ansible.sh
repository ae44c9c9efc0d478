# shellcheck shell=bash
# Ansible for the laboratories and the tests of the role, in .lab/ansible of the tree. Sourced; needs install.sh.

ANSIBLE_CORE=2.18.19 ANSIBLE_LINT=26.10.1

# Puts ansible-playbook and ansible-lint into the search path, in these versions.
need_ansible() {
    local venv=$PWD/.lab/ansible stamp
    stamp="ansible-core==$ANSIBLE_CORE ansible-lint==$ANSIBLE_LINT"
    if [[ $(cat "$venv/stamp" 2>/dev/null) != "$stamp" ]]; then
        need_packages python3-venv
        echo "installing $stamp"
        rm -rf "$venv"
        # The system's own Python: machines have it at the same place.
        /usr/bin/python3 -m venv "$venv"
        # shellcheck disable=SC2086
        "$venv/bin/pip" install --quiet --disable-pip-version-check $stamp
        echo "$stamp" >"$venv/stamp"
    fi
    export PATH=$venv/bin:$PATH
}
