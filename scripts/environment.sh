# What scripts/test, scripts/demo and scripts/bench need before they can begin; sourced by them.
# PYTHON names the interpreter (3.11 or newer); the virtual environment is build/venv.
# shellcheck shell=bash

readonly venv=build/venv
readonly debian_packages=(
    acl attr btrfs-progs cpio debootstrap docker-compose docker.io e2fsprogs ed fuse-overlayfs
    krb5-admin-server krb5-kdc krb5-user libcap2-bin libnss3-tools mount netavark podman prometheus
    python3-rpm rpm rsync runc slirp4netns strace uidmap util-linux vim xfsprogs
)
# The commands that these packages bring, for systems that name their packages otherwise.
readonly commands=(
    btrfs certutil cpio debootstrap docker ed getfacl getfattr kadmin.local ktutil mkfs.btrfs
    mkfs.ext4 mkfs.xfs mount podman promtool rpm rpmbuild rsync setcap setfacl setfattr strace
    unshare
)
PATH=$PATH:/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK=1

bold='' red='' reset=''
if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' red=$'\e[31m' reset=$'\e[0m'
fi

say() { printf '%s==> %s%s\n' "$bold" "$*" "$reset" >&2; }
complain() { printf '%s==> %s%s\n' "$red" "$*" "$reset" >&2; }
in_ci() { [[ -n ${CI:-} && ${CI:-} != false && ${CI:-} != 0 ]]; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    complain "no Python 3.11 or newer${PYTHON:+ at PYTHON=$PYTHON}; name one in PYTHON"
    return 1
}

is_debian_root() { [[ $EUID -eq 0 && -e /etc/debian_version ]] && command -v apt-get >/dev/null; }

install_debian_packages() {
    local package missing=() wanted=("${debian_packages[@]}" "$@")
    "$python" -c 'import ensurepip, venv' 2>/dev/null || wanted+=(python3-venv)
    for package in "${wanted[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        say "system: every Debian package is there"
        return
    fi
    say "system: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}

name_missing_commands() {
    local command missing=()
    for command in "${commands[@]}"; do
        command -v "$command" >/dev/null || missing+=("$command")
    done
    ((EUID == 0)) || say "system: not root, so tests that mount or change owners cannot run"
    ((${#missing[@]})) || return 0
    say "system: not found: ${missing[*]}"
    say "system: Debian has them in: ${debian_packages[*]}"
    say "system: Fedora in: acl attr btrfs-progs cpio debootstrap e2fsprogs ed krb5-server" \
        "krb5-workstation libcap moby-engine nss-tools golang-github-prometheus podman" \
        "python3-rpm rpm-build rsync strace util-linux xfsprogs"
    if in_ci; then
        complain "system: CI skips nothing; install them first"
        return 1
    fi
}

# The environment is made anew for another interpreter, brought up to date for another
# pyproject.toml, and otherwise left alone. Two scripts that begin at once make it one after the other.
make_environment() {
    mkdir -p "$(dirname "$venv")"
    (
        flock 9
        make_environment_alone
    ) 9>"$venv.lock"
}

make_environment_alone() {
    local stamp=$venv/.made-for for_python for_project begin=$SECONDS
    for_python=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)' | tr '\n' ' ')
    for_project=$(cksum <pyproject.toml)
    if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$for_python"$'\n'"$for_project" ]]
    then
        say "environment: $venv is up to date"
        return
    fi
    if [[ ! -x $venv/bin/python || ! -f $stamp || $(head -n 1 "$stamp") != "$for_python" ]]; then
        say "environment: making $venv with $python"
        rm -rf "$venv"
        "$python" -m venv "$venv"
        # Dependency groups need it.
        "$venv/bin/python" -m pip install -q --upgrade 'pip>=25.1'
    fi
    rm -f "$stamp"
    say "environment: installing ipavolume and the groups test and lint"
    "$venv/bin/python" -m pip install -q --upgrade --editable . --group test --group lint
    printf '%s\n%s' "$for_python" "$for_project" >"$stamp"
    say "environment: ready, $((SECONDS - begin)) s"
}

# start_engine: makes sure that docker's engine answers; what is started here is stopped at the end.
start_engine() {
    local log=build/dockerd.log attempt
    docker version >/dev/null 2>&1 && return
    if ((EUID != 0)) || ! command -v dockerd >/dev/null; then
        say "engine: docker does not answer, so tests of containers cannot run"
        return
    fi
    say "engine: starting dockerd"
    mkdir -p build
    setsid dockerd >"$log" 2>&1 &
    engine=$!
    trap 'kill "$engine" 2>/dev/null; wait "$engine" || :' EXIT
    for ((attempt = 0; attempt < 300; attempt++)); do
        docker version >/dev/null 2>&1 && return
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.2
    done
    complain "engine: dockerd does not come up; the end of $log:"
    tail -n 5 "$log" >&2
    return 1
}

# prepare_machine PACKAGE...: installs or names the missing commands, and makes the environment;
# Debian packages that only one script needs are its arguments.
prepare_machine() {
    python=$(find_python)
    if is_debian_root; then
        install_debian_packages "$@"
    else
        name_missing_commands
    fi
    make_environment
}
