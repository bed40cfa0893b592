#compdef podwire
# Completion of podwire for zsh: a file _podwire in a directory of $fpath, or
#   source <(podwire completion zsh)
_podwire() {
    local line
    local -a words_found meanings
    while IFS= read -r line; do
        words_found+=("${line%%$'\t'*}")
        meanings+=("${line/$'\t'/  -- }")
    done < <("${words[1]}" __complete zsh $((CURRENT - 1)) "${words[@]}" 2>/dev/null)
    if ((${#words_found})); then
        compadd -l -d meanings -a words_found
    else
        _files
    fi
}
# Loaded from $fpath the file is the function; sourced, it registers it.
if [[ ${funcstack[1]} == _podwire ]]; then
    _podwire "$@"
else
    compdef _podwire podwire
fi
