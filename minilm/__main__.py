from minilm.cli import main

main()
