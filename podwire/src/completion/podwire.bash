# Completion of podwire for bash: /usr/share/bash-completion/completions/podwire, or
#   source <(podwire completion bash)
_podwire() {
    local IFS=$'\n'
    COMPREPLY=($("$1" __complete bash "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null))
}
# Where podwire has no word, files are completed.
complete -o default -o nosort -F _podwire podwire
