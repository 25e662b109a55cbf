package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help describes the command.
func (completionCommand) Help() string {
	return "It changes nothing: the script goes to standard output.\n\nExamples:\n\n  source <(herdbook completion bash)\n" +
		"  herdbook completion zsh > \"${fpath[1]}/_herdbook\"\n  herdbook completion fish | source"
}

// Run prints the script. The words come from the command line itself, so that a new command or
// flag is completed too.
func (c completionCommand) Run(t terminal, parser *kong.Kong) error {
	names, helps, flags, arguments := words(parser)
	var script strings.Builder
	switch c.Shell {
	case "bash":
		fmt.Fprintf(&script, "_herdbook() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words\n  if [ \"$COMP_CWORD\" -eq 1 ]; then words='%s'\n  else case ${COMP_WORDS[1]} in\n", strings.Join(names, " "))
		for _, name := range names {
			fmt.Fprintf(&script, "    %s) words='%s'; [[ $cur == -* ]] && words='%s' ;;\n", name, strings.Join(arguments[name], " "), strings.Join(flags[name], " "))
		}
		// Without a word that fits, -o default offers files.
		script.WriteString("    esac\n  fi\n  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\ncomplete -o default -F _herdbook herdbook\n")
	case "zsh":
		script.WriteString("#compdef herdbook\n_herdbook() {\n  if (( CURRENT == 2 )); then\n    local -a commands=(\n")
		for _, name := range names {
			fmt.Fprintf(&script, "      '%s:%s'\n", name, strings.ReplaceAll(helps[name], "'", ""))
		}
		script.WriteString("    )\n    _describe command commands\n    return\n  fi\n  case $words[2] in\n")
		for _, name := range names {
			fmt.Fprintf(&script, "    %s) compadd -- %s; _files ;;\n", name, strings.Join(append(arguments[name], flags[name]...), " "))
		}
		script.WriteString("  esac\n}\ncompdef _herdbook herdbook\n")
	case "fish":
		for _, name := range names {
			fmt.Fprintf(&script, "complete -c herdbook -n __fish_use_subcommand -a %s -d '%s'\n", name, strings.ReplaceAll(helps[name], "'", ""))
			if words := arguments[name]; len(words) > 0 {
				fmt.Fprintf(&script, "complete -c herdbook -f -n '__fish_seen_subcommand_from %s' -a '%s'\n", name, strings.Join(words, " "))
			}
			for _, flag := range flags[name] {
				fmt.Fprintf(&script, "complete -c herdbook -n '__fish_seen_subcommand_from %s' -l %s\n", name, strings.TrimPrefix(flag, "--"))
			}
		}
	}
	_, err := fmt.Fprint(t.out, script.String())
	return err
}

// words are the commands, what each is for, its flags, and the words that its arguments may be.
func words(parser *kong.Kong) (names []string, helps map[string]string, flags, arguments map[string][]string) {
	helps, flags, arguments = map[string]string{}, map[string][]string{}, map[string][]string{}
	for _, command := range parser.Model.Children {
		name := command.Name
		names = append(names, name)
		helps[name] = command.Help
		for _, node := range append(command.Children, command) {
			for _, flag := range node.Flags {
				flags[name] = append(flags[name], "--"+flag.Name)
			}
			for _, argument := range node.Positional {
				if argument.Enum != "" {
					arguments[name] = append(arguments[name], argument.EnumSlice()...)
				}
			}
			if node != command {
				arguments[name] = append(arguments[name], node.Name)
			}
		}
		for _, flag := range parser.Model.Flags {
			flags[name] = append(flags[name], "--"+flag.Name)
		}
		slices.Sort(flags[name])
		flags[name] = slices.Compact(flags[name])
	}
	arguments["help"] = names
	return names, helps, flags, arguments
}
