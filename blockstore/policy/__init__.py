"""Who may do what: the rules, and the policy file of a site."""
