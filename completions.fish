# `source completions.fish`: fish completes the five scripts behind `python`, as argcomplete has it done in bash and zsh.
function __scripts_are_completed
    set -l words (commandline -opc)
    test (count $words) -ge 2
    and string match -qr '(^|/)python[0-9.]*$' -- $words[1]
    and string match -qr '(^|/)(prep|train|eval|search|app)\.py$' -- $words[2]
end

function __complete_scripts
    set -l words (commandline -opc)
    set -lx _ARGCOMPLETE 2
    set -lx _ARGCOMPLETE_SHELL fish
    set -lx _ARGCOMPLETE_DFS \t
    set -lx _ARGCOMPLETE_IFS \n
    set -lx _ARGCOMPLETE_SUPPRESS_SPACE 1
    set -lx COMP_LINE (commandline -p)
    set -lx COMP_POINT (string length -- (commandline -cp))
    set -lx COMP_TYPE
    set -lx _ARGCOMPLETE_STDOUT_FILENAME (mktemp)
    $words[1..2] >/dev/null 2>&1 </dev/null
    cat $_ARGCOMPLETE_STDOUT_FILENAME
    rm -f $_ARGCOMPLETE_STDOUT_FILENAME
end

complete --command python --command python3 --condition __scripts_are_completed --arguments '(__complete_scripts)'
