# Completion of podwire for fish: /usr/share/fish/vendor_completions.d/podwire.fish, or
#   podwire completion fish | source
function __podwire_complete
    set -l before (commandline -opc)
    podwire __complete fish (count $before) $before (commandline -ct) 2>/dev/null
end
complete -c podwire -a '(__podwire_complete)'
