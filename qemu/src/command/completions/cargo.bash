
# `cargo qemu` is ours; cargo's own completion, if there is one, has the rest.
_cargo_qemu_or_other() {
    if [[ $COMP_CWORD -ge 2 && ${COMP_WORDS[1]} == qemu ]]; then
        local COMP_WORDS=("${COMP_WORDS[@]:1}") COMP_CWORD=$((COMP_CWORD - 1))
        _cargo_qemu qemu "$2" "$3"
    elif [[ -n $_cargo_qemu_other ]]; then
        "$_cargo_qemu_other" "$@"
    fi
}

if [[ -z $_cargo_qemu_other ]]; then
    # bash-completion loads cargo's when it is first asked for.
    if declare -F _comp_load >/dev/null; then
        _comp_load cargo
    elif declare -F _completion_loader >/dev/null; then
        _completion_loader cargo
    fi
    if [[ $(complete -p cargo 2>/dev/null) =~ -F\ ([^ ]+) &&
        ${BASH_REMATCH[1]} != _cargo_qemu_or_other ]]; then
        _cargo_qemu_other=${BASH_REMATCH[1]}
    fi
fi
complete -F _cargo_qemu_or_other -o bashdefault -o default cargo
