# Completion of ferry's command line for fish.
complete -c ferry -f
complete -c ferry -n __fish_use_subcommand -a run -d 'Boot a guest on this terminal'
complete -c ferry -n __fish_use_subcommand -a doctor -d 'Show what this host offers to guests'
complete -c ferry -n __fish_use_subcommand -a help -d 'Show a help page'
complete -c ferry -n __fish_use_subcommand -l version -d 'Show the version'
complete -c ferry -n '__fish_seen_subcommand_from help' -a 'run doctor'
complete -c ferry -s h -l help -d 'Show the help page'

complete -c ferry -n '__fish_seen_subcommand_from doctor' -l json -d 'Print the findings as JSON'

complete -c ferry -n '__fish_seen_subcommand_from run' -s k -l kernel -rF -d 'bzImage, ELF64 or Multiboot kernel'
complete -c ferry -n '__fish_seen_subcommand_from run' -s i -l initrd -rF -d 'Initial RAM disk'
complete -c ferry -n '__fish_seen_subcommand_from run' -s a -l append -x -d 'Options of the kernel'
complete -c ferry -n '__fish_seen_subcommand_from run' -s c -l cpus -x -d 'CPUs'
complete -c ferry -n '__fish_seen_subcommand_from run' -s m -l memory -x -a '512M 1G 2G 4G' -d 'Memory'
complete -c ferry -n '__fish_seen_subcommand_from run' -s d -l disk -rF -d 'Disk, a raw image'
complete -c ferry -n '__fish_seen_subcommand_from run' -s n -l net -x -a 'nat none' -d 'Network card'
complete -c ferry -n '__fish_seen_subcommand_from run' -l console -x -a 'serial virtio off' -d 'The guest\'s console'
complete -c ferry -n '__fish_seen_subcommand_from run' -l name -x -d 'Name of the guest'
complete -c ferry -n '__fish_seen_subcommand_from run' -l decompress -x -a 'auto host guest' -d 'Who unpacks a bzImage'
complete -c ferry -n '__fish_seen_subcommand_from run' -l no-reboot -d 'End when the guest resets'
complete -c ferry -n '__fish_seen_subcommand_from run' -l grace -x -d 'From the power button to a forced end'
complete -c ferry -n '__fish_seen_subcommand_from run' -s v -l verbose -d 'Say more; twice for everything'
