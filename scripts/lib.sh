# Sourced by the scripts beside it: the root of the tree as the working folder,
# cargo on the path, and no standard input, so that nothing can ask a question.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin"
unset RUSTFLAGS RUSTDOCFLAGS CARGO_TARGET_DIR

RUST_VERSION_MIN=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

step() { printf '\n== %s\n' "$*" >&2; }
note() { printf '%s\n' "$*" >&2; }
stop() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
# Says why tests that need $1 are left out: a failure where `.ci/run` requires it.
left_out() {
    note "LEFT OUT: ${*:2}"
    case " ${COLLIMATE_TEST_REQUIRED:-} " in *" $1 "*) stop "$1 must be tested here: what it needs is installed" ;; esac
}

have() { command -v "$1" >/dev/null 2>&1; }

# Whether some file matches a pattern.
present() { compgen -G "$1" >/dev/null; }

have_libclang() { present '/usr/lib/llvm-*/lib/libclang*.so*'; }

# Whether the feature `mpi` can be compiled for Open MPI.
can_build_mpi() { have mpicc.openmpi && have_libclang; }

# Whether the bindings to libibverbs and libfabric can be made anew.
can_make_bindings() { have_libclang && [ -e /usr/include/infiniband/verbs.h ] && [ -e /usr/include/rdma/fabric.h ]; }

# That the files which `cargo xtask` makes are what it would make now.
check_generated() {
    step "generated code is current"
    cargo xtask schema --check
    cargo xtask header --check
    if can_make_bindings; then
        # Without clang's own headers libclang takes those of the C compiler.
        BINDGEN_EXTRA_CLANG_ARGS="-I$(cc -print-file-name=include)" cargo xtask bindings --check
    else
        left_out bindings "the headers of libibverbs and libfabric, or libclang (scripts/setup --test says what to type)"
    fi
}

# The words that start $1 ranks of what follows them, one per line: mpirun of
# Open MPI or MPICH where it works, else our own launcher.
launcher() {
    local ranks=$1
    if have mpirun; then
        local words=(mpirun -n "$ranks")
        if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
            # Left to itself it binds each rank to one core, refuses more ranks
            # than cores, and refuses root.
            words+=(--oversubscribe --bind-to none)
            [ "$(id -u)" -ne 0 ] || words+=(--allow-run-as-root)
        fi
        if "${words[@]}" true >/dev/null 2>&1; then
            printf '%s\n' "${words[@]}"
            return
        fi
        note "mpirun is installed but cannot start two processes; using Collimate's own launcher."
    fi
    printf '%s\n' target/release/collimate run -n "$ranks" --
}
